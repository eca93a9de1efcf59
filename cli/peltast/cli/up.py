"""``peltast up``: a mesh on this machine, in the foreground, with a live feed of its decisions."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import typer
from rich.markup import escape

from peltast.audit.query.query import Query
from peltast.audit.query.read import follow
from peltast.audit.query.shape import Kind
from peltast.audit.query.values import printable
from peltast.audit.store.embedded import PostgresUnusable
from peltast.audit.store.url import DatabaseUnusable
from peltast.cli.audit.connection import connected
from peltast.cli.audit.retain import keep_retaining
from peltast.cli.console import out, print_error, print_problems, run_until_stopped
from peltast.cli.logs import log_to_stderr
from peltast.cli.options import (
    BasePort,
    CheckpointSinks,
    Concurrency,
    Configuration,
    RedisUrl,
    RetentionDays,
    SpoolBytes,
    State,
    StoreDatabase,
    TrustDomainOption,
    sinks_of,
)
from peltast.cli.processes import Mesh, MeshSettings, StateInUse
from peltast.cli.readiness import NotReady, busy_addresses, mesh_addresses
from peltast.cli.settings import (
    DEFAULT_BASE_PORT,
    DEFAULT_CONCURRENCY,
    DEFAULT_SPOOL_BYTES,
    DEFAULT_TRUST_DOMAIN,
    LOOPBACK,
    REDIS_VARIABLE,
    ControlSettings,
)
from peltast.cli.validate import admitted_revision
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.snapshot import Snapshot, load
from peltast.policies.sources.folder import watch_folder
from peltast.proxy.sidecar.binary import EnvoyUnusable, find_envoy

__all__ = ["CannotStart", "app", "preflight", "short_principal"]

_QUIET_ACTS = frozenset({"svid.issue", "resource.live"})
"""Acts of every day, which the feed leaves out while they are allowed."""

_FED = Query(
    Kind.EVENTS,
    columns=(
        *("time", "kind", "effect", "source_principal", "destination_principal", "method", "path"),
        *("policy", "rule", "reason", "decided_by", "action", "object", "detail"),
    ),
    limit=None,
)

_STATE = ".peltast"


class CannotStart(RuntimeError):
    """Something that a mesh needs is not there."""


app = typer.Typer(add_completion=False)


@app.command()
def up(
    configuration: Configuration,
    state: State | None = None,
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    base_port: BasePort = DEFAULT_BASE_PORT,
    concurrency: Concurrency = DEFAULT_CONCURRENCY,
    spool_bytes: SpoolBytes = DEFAULT_SPOOL_BYTES,
    retention_days: RetentionDays = None,
    database: StoreDatabase = None,
    checkpoints: CheckpointSinks = None,
    redis: RedisUrl = None,
) -> None:
    """Runs a mesh from a folder of YAML and Rego, in the foreground, with a live feed of its decisions.

    Edit a file: it decides within a second. Ctrl-C ends everything. State is kept in DIR/.peltast, unless --state says
    otherwise.
    """
    log_to_stderr(logging.WARNING)
    control = ControlSettings(state or configuration / _STATE, trust_domain, base_port)
    sinks_of(control.state, checkpoints)  # what is wrong with them is said at once
    os.environ.pop(REDIS_VARIABLE, None)  # a password may be in it, which applications must not inherit
    settings = MeshSettings(
        configuration,
        control,
        concurrency,
        spool_bytes,
        database=database,
        checkpoints=tuple(checkpoints or ()),
        redis=redis,
    )
    run_until_stopped(_up(settings, retention_days))


async def _up(settings: MeshSettings, retention_days: int | None) -> int:
    try:
        snapshot = await preflight(settings)
        store = "PostgreSQL (embedded, for this machine only), " if settings.database is None else ""
        out.print(f"Starting {store}control plane, collector …")
        async with Mesh(settings) as mesh, asyncio.TaskGroup() as group:
            group.create_task(_feed(settings.control.state, mesh.database))
            await mesh.reconcile(snapshot)
            await mesh.wait_until_ready(snapshot)
            _say_ready(settings, snapshot, mesh)
            group.create_task(_follow_configuration(settings, mesh))
            if retention_days is not None:
                group.create_task(keep_retaining(settings.control.state, settings.database, retention_days))
    except* InvalidConfiguration as group:
        for invalid in group.exceptions:
            print_problems(invalid)
    except* (CannotStart, DatabaseUnusable, NotReady, StateInUse, EnvoyUnusable, PostgresUnusable) as group:
        for error in group.exceptions:
            print_error(error)
    return 1


async def preflight(settings: MeshSettings) -> Snapshot:
    """What can be known before anything is started.

    Raises:
        InvalidConfiguration: the folder would not be taken.
        EnvoyUnusable: see there.
        CannotStart: a port is in use.
    """
    find_envoy()
    revision = await admitted_revision(settings.configuration, settings.control.trust_domain)
    control = [(LOOPBACK, port) for port in settings.control.ports.all]
    if busy := busy_addresses([*control, *mesh_addresses(revision.snapshot)]):
        advice = "end what listens there, or give --base-port for the control plane's"
        raise CannotStart(f"cannot listen on {', '.join(busy)}; {advice}")
    return revision.snapshot


def _say_ready(settings: MeshSettings, snapshot: Snapshot, mesh: Mesh) -> None:
    for workload in snapshot.workloads.values():
        out.print(f"  {workload.principal} at {workload.address}", markup=False)
        for route in workload.routes:
            out.print(f"    calls {route.host} at {workload.address}:{route.port}", markup=False)
    out.print(f"Audit log: psql '{mesh.database}'", markup=False)
    out.print(f"Ready. Logs are in {settings.logs}. Ctrl-C ends everything.", markup=False)


async def _follow_configuration(settings: MeshSettings, mesh: Mesh) -> None:
    """Starts and ends workloads as the folder says. What is wrong with it is the control plane's to tell."""
    async for files in watch_folder(settings.configuration):
        if isinstance(files, InvalidConfiguration):
            continue
        try:
            await mesh.reconcile(load(files, settings.control.trust_domain, 0))
        except InvalidConfiguration:
            continue
        except NotReady as error:
            print_error(error)


async def _feed(state: Path, database: str) -> None:
    async for row in follow(lambda: connected(state, database), _FED):
        if line := feed_line(row):
            out.print(line)


def feed_line(row: asyncpg.Record) -> str | None:
    """A record as a line of the feed; none for what the feed leaves out."""
    time = datetime.fromtimestamp(int(row["time"]) / 10**9, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    if row["kind"] == "act":
        text = _act_text(row)
        return f"{time} {text}" if text else None
    effect = row["effect"]
    colour = "green" if effect == "allow" else "red"
    where = f"{short_principal(row['source_principal'])} → {short_principal(row['destination_principal'])}"
    # A decision is about a request, which has a method, or about a whole connection.
    kind = "connection" if row["kind"] == "decision" else row["kind"]
    what = f"{row['method'] or kind} {row['path'] or ''}".strip()
    rule = "" if row["rule"] is None else f" rule {row['rule']}"
    by = f"{row['policy']}{rule}" if row["policy"] else ""
    cached = " (cached)" if row["decided_by"] == "cache" else ""
    text = " ".join(filter(None, [where, what, by, row["reason"]]))
    return f"{time} [{colour}]{escape(printable(effect)):<5}[/{colour}] {escape(printable(text))}{cached}"


def _act_text(row: asyncpg.Record) -> str | None:
    allowed = row["effect"] == "allow"
    if allowed and row["action"] in _QUIET_ACTS:
        return None
    lines = [f"{row['action']} {row['object'] or ''}", *("" if allowed else row["detail"] or "").splitlines()]
    text = escape("\n".join(map(printable, lines)))
    return f"[cyan]{text}[/cyan]" if allowed else f"[red]{text}[/red]"


def short_principal(principal: str | None) -> str:
    """`ns/sa` of a SPIFFE ID of Istio's form."""
    if principal is None:
        return "unknown"
    parts = principal.split("/")
    return f"{parts[-3]}/{parts[-1]}" if len(parts) == 7 else principal
