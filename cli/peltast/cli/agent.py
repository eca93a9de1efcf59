"""The agent's process: a sidecar's Envoy, its identity, and the shipping of its audit records."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import grpc
import typer

from peltast.audit.shipper import Shipper
from peltast.cli.console import run_until_stopped
from peltast.cli.logs import log_to_stderr
from peltast.cli.options import BasePort, Concurrency, SpoolBytes, State, TrustDomainOption
from peltast.cli.settings import (
    DEFAULT_BASE_PORT,
    DEFAULT_CONCURRENCY,
    DEFAULT_SPOOL_BYTES,
    DEFAULT_TRUST_DOMAIN,
    ControlSettings,
    take_join_token,
)
from peltast.cli.starts import KeyCache, Starter
from peltast.identity.client import IdentityClient
from peltast.identity.rpc import channel_credentials, open_channel
from peltast.proxy.agent.agent import Agent, AgentSettings
from peltast.proxy.sidecar.binary import find_envoy

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def agent(
    state: State,
    workload: Annotated[str, typer.Option(metavar="NAMESPACE/NAME", help="Whose sidecar this is.")],
    sidecar_state: Annotated[Path, typer.Option(help="Folder of this sidecar's own.", file_okay=False)],
    sockets: Annotated[Path, typer.Option(help="Folder for Unix sockets; its path must be short.", file_okay=False)],
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    base_port: BasePort = DEFAULT_BASE_PORT,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    spool_bytes: SpoolBytes = DEFAULT_SPOOL_BYTES,
) -> None:
    """A sidecar: its identity, its Envoy, and the shipping of its audit records."""
    log_to_stderr()
    control = ControlSettings(state, trust_domain, base_port)
    settings = AgentSettings(
        workload=workload,
        trust_domain=trust_domain,
        state=sidecar_state,
        sockets=sockets,
        control_address=control.address(control.ports.mtls),
        spool_bytes=spool_bytes,
        concurrency=concurrency,
    )
    run_until_stopped(_run(settings, control, take_join_token()))


async def _run(settings: AgentSettings, control: ControlSettings, token: str) -> None:
    envoy = find_envoy()
    roots = control.trust_bundle.read_bytes()
    identity = IdentityClient(settings.state, roots, control.address(control.ports.join), settings.control_address)
    collector_address = control.address(control.ports.collector)

    def collector_channel() -> grpc.aio.Channel:
        svid = identity.svid
        return open_channel(collector_address, channel_credentials(roots, svid.chain_pem, svid.key_pem))

    shipper = Shipper(settings.spool, settings.spool_bytes, collector_channel)
    await identity.start(token)
    keys = KeyCache(settings.state / "audit-keys.pb", collector_channel)
    starter = Starter(settings.spool, settings.state / "audit-start.sha256", lambda: identity.svid)

    async def before_start() -> None:
        starter.write(await keys.get())

    async with asyncio.TaskGroup() as group:
        group.create_task(shipper.run())
        group.create_task(keys.refresh())
        group.create_task(Agent(settings, identity, envoy, before_start).run())
