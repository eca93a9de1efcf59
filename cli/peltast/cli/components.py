"""The processes that a mesh is made of, each as a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from peltast.audit.store.url import DatabaseUnusable, check_database_url
from peltast.cli.agent import run_agent
from peltast.cli.collector import run_collector
from peltast.cli.console import log_to_stderr, print_error, run_until_stopped
from peltast.cli.control_plane import ControlPlane
from peltast.cli.options import BasePort, CheckpointSinks, Concurrency, SpoolBytes, State, TrustDomainOption, sinks_of
from peltast.cli.settings import (
    DEFAULT_BASE_PORT,
    DEFAULT_CONCURRENCY,
    DEFAULT_SPOOL_BYTES,
    DEFAULT_TRUST_DOMAIN,
    JOIN_TOKEN_VARIABLE,
    ControlSettings,
)
from peltast.proxy.agent.agent import AgentSettings

__all__ = ["agent", "collector", "control_plane"]


def control_plane(
    state: State,
    config: Annotated[Path, typer.Option(help="Folder of YAML and Rego.", exists=True, file_okay=False)],
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    base_port: BasePort = DEFAULT_BASE_PORT,
) -> None:
    """Configuration, certificate authority, discovery (ADS) and check service."""
    log_to_stderr()
    settings = ControlSettings(state, trust_domain, base_port)

    async def run() -> None:
        await ControlPlane(settings, config).run()

    run_until_stopped(run())


def collector(
    state: State,
    database: Annotated[str, typer.Option(metavar="URL", help="PostgreSQL, as the role that collects.")],
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    base_port: BasePort = DEFAULT_BASE_PORT,
    checkpoints: CheckpointSinks = None,
) -> None:
    """Takes in audit records and commits them to PostgreSQL."""
    log_to_stderr()
    settings = ControlSettings(state, trust_domain, base_port)
    try:
        check_database_url(database)
    except DatabaseUnusable as error:
        print_error(error)
        raise typer.Exit(1) from None
    run_until_stopped(run_collector(settings, database, sinks_of(state, checkpoints), _join_token()))


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
    run_until_stopped(run_agent(settings, control, _join_token()))


def _join_token() -> str:
    """The token, out of the environment at once: children must not inherit it."""
    return os.environ.pop(JOIN_TOKEN_VARIABLE, "")
