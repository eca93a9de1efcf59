"""The agent's process: a sidecar's Envoy, its identity, and the shipping of its audit records."""

from __future__ import annotations

import asyncio

import grpc

from peltast.audit.shipper import Shipper
from peltast.cli.settings import ControlSettings
from peltast.cli.starts import KeyCache, Starter
from peltast.identity.client import IdentityClient
from peltast.identity.rpc import channel_credentials, open_channel
from peltast.proxy.agent.agent import Agent, AgentSettings
from peltast.proxy.sidecar.binary import find_envoy

__all__ = ["run_agent"]


async def run_agent(settings: AgentSettings, control: ControlSettings, token: str) -> None:
    """Runs for ever."""
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
