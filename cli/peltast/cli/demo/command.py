"""The command: starts the bookshop, tries every case, shows what is on record, and ends."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import typer
import yaml
from rich.markup import escape
from rich.table import Column, Table
from spiffe import TrustDomain

from peltast.audit.chain import verify_store
from peltast.audit.query.query import Order, Query
from peltast.audit.query.read import stream
from peltast.audit.query.shape import SHAPES, Kind
from peltast.audit.reports.access import ACCESS
from peltast.audit.reports.formats import Format, write
from peltast.audit.reports.make import make_report
from peltast.audit.reports.plaintext import PLAINTEXT
from peltast.audit.reports.report import Cell, Report, Span
from peltast.audit.store.embedded import PostgresUnusable
from peltast.cli.console import err, out, print_error, print_problems, run_until_stopped
from peltast.cli.demo.cases import Case, Surroundings, cases
from peltast.cli.demo.driver import Attempt, fire
from peltast.cli.demo.tokens import TokenIssuer
from peltast.cli.logs import log_to_stderr
from peltast.cli.options import BasePort
from peltast.cli.processes import Mesh, MeshSettings
from peltast.cli.readiness import NotReady
from peltast.cli.settings import DEFAULT_BASE_PORT, DEFAULT_SPOOL_BYTES, DEFAULT_TRUST_DOMAIN, ControlSettings
from peltast.cli.up import CannotStart, preflight, short_principal
from peltast.identity.ca.store import load_or_create
from peltast.identity.svid import load_svid
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.snapshot import Snapshot
from peltast.proxy.sidecar.binary import EnvoyUnusable

__all__ = ["app"]

_BOOKSHOP = Path("deploy/samples/bookshop")
_COMMITTED_WITHIN_SECONDS = 10.0
_POLL_SECONDS = 0.05

_REQUESTS = Query(columns=SHAPES[Kind.REQUESTS].recorded, order=Order.OLDEST, limit=None)

Row = asyncpg.Record


app = typer.Typer(add_completion=False)


@app.command()
def demo(
    bookshop: Annotated[Path, typer.Argument(help="The sample.", exists=True, file_okay=False)] = _BOOKSHOP,
    report: Annotated[Path, typer.Option(help="Folder for the reports as CSV, JSON and HTML.")] = Path("demo-report"),
    base_port: BasePort = DEFAULT_BASE_PORT,
) -> None:
    """Runs the bookshop in a mesh, sends it requests and attacks, and shows what was decided, why, and on record.

    Exits 0 only if every decision was the expected one, every attempt is on record once, and the record's chain holds.
    """
    log_to_stderr(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="peltast-demo-") as folder:
        run_until_stopped(_demo(bookshop, Path(folder), report, base_port))


async def _demo(bookshop: Path, folder: Path, report: Path, base_port: int) -> int:
    issuer = TokenIssuer()
    configuration = _with_issuer(bookshop, folder / "bookshop", issuer)
    control = ControlSettings(folder / "state", DEFAULT_TRUST_DOMAIN, base_port)
    settings = MeshSettings(configuration, control, concurrency=1, spool_bytes=DEFAULT_SPOOL_BYTES)
    try:
        return await _run(settings, issuer, report)
    except InvalidConfiguration as invalid:
        print_problems(invalid)
    except (CannotStart, NotReady, EnvoyUnusable, PostgresUnusable) as error:
        print_error(error)
    return 1


def _with_issuer(bookshop: Path, copy: Path, issuer: TokenIssuer) -> Path:
    """A copy of the sample that takes the tokens of `issuer`: no private key lies in a repository."""
    shutil.copytree(bookshop, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    file = copy / "customers.yaml"
    resource = yaml.safe_load(file.read_text())
    resource["spec"]["jwtRules"][0]["jwks"] = issuer.jwks()
    file.write_text(yaml.safe_dump(resource))
    return copy


async def _run(settings: MeshSettings, issuer: TokenIssuer, report: Path) -> int:
    snapshot = await preflight(settings)
    out.print("Starting PostgreSQL, control plane, collector, and two services with a sidecar each …")
    began, started = datetime.now(UTC), time.monotonic()
    async with Mesh(settings) as mesh:
        await mesh.reconcile(snapshot)
        await mesh.wait_until_ready(snapshot)
        out.print(
            f"Ready after {time.monotonic() - started:.1f} s. All workloads run under one user id here: that each"
        )
        out.print("is who it says rests on the agent having started it.\n")
        tried = [(case, await fire(case.shot)) for case in cases(_surroundings(settings, snapshot, issuer))]
        connection = await asyncpg.connect(mesh.database)
        rows = await _committed(connection, len(tried))
        sound = _show_decisions(tried, rows)
        sound &= _show_count(len(tried), len(rows))
        span = Span(began, datetime.now(UTC))
        for kind in (ACCESS, PLAINTEXT):
            _show_report(await make_report(kind, connection, span), report / kind.name)
        sound &= await _show_chain(connection)
        await connection.close()
    out.print("Everything is stopped.")
    return 0 if sound else 1


def _surroundings(settings: MeshSettings, snapshot: Snapshot, issuer: TokenIssuer) -> Surroundings:
    now, state = datetime.now(UTC), settings.control.state
    svid = load_svid(state / "sidecars" / "bookshop" / "storefront", now)
    assert svid is not None, "the storefront's sidecar is ready"
    return Surroundings(
        storefront=snapshot.workloads["bookshop/storefront"],
        catalog=snapshot.workloads["bookshop/catalog"],
        storefront_svid=svid,
        authority=load_or_create(settings.control.authority, TrustDomain(settings.control.trust_domain), now),
        issuer=issuer,
    )


async def _committed(connection: asyncpg.Connection[Any], expected: int) -> list[Row]:
    """The rows on record, as soon as there are as many as were `expected`, or it has taken too long."""
    deadline = time.monotonic() + _COMMITTED_WITHIN_SECONDS
    while True:
        rows = [row async for row in stream(connection, _REQUESTS)]
        if len(rows) >= expected or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(_POLL_SECONDS)


def _table(*columns: str, title: str | None = None) -> Table:
    """A table that folds what does not fit: nothing of it is cut."""
    return Table(*(Column(name, overflow="fold") for name in columns), title=title)


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    names = str(cell).split(",")
    return ",".join(short_principal(name) if name.startswith("spiffe://") else name for name in names)


def _show_decisions(tried: list[tuple[Case, Attempt]], rows: list[Row]) -> bool:
    table = _table("", "what", "request", "decision", "policy, rule", "reason", "by", "ms")
    sound = True
    for case, attempt in tried:
        row = _row_of(attempt, rows)
        as_expected = row is not None and _is_as_expected(case, attempt, row)
        sound &= as_expected
        table.add_row(*_cells(case, attempt, row, as_expected))
    out.print(table)
    return sound


def _row_of(attempt: Attempt, rows: list[Row]) -> Row | None:
    """The row of `attempt`: by the request id that it sent, or by its address where no request came through."""
    for row in rows:
        if attempt.request_id == row["request_id"] or attempt.source_address == row["source_address"]:
            return row
    return None


def _is_as_expected(case: Case, attempt: Attempt, row: Row) -> bool:
    expected = case.expected
    recorded = (row["effect"], row["reason"], row["policy"], row["rule"], row["decided_by"])
    wanted = (expected.effect, expected.reason, expected.policy, expected.rule, expected.decided_by)
    return recorded == wanted and attempt.status == expected.status and case.sees(attempt)


def _cells(case: Case, attempt: Attempt, row: Row | None, as_expected: bool) -> list[str]:
    mark = "[green]✓[/green]" if as_expected else "[red]✗[/red]"
    request = escape(f"{case.shot.method} {case.shot.path}")
    latency = f"{attempt.milliseconds:.1f}"
    if row is None:
        return [mark, case.name, request, "not on record", "", f"status {attempt.status}", "", latency]
    colour = "green" if row["effect"] == "allow" else "red"
    rule = "" if row["rule"] is None else f", {row['rule']}"
    policy = f"{row['policy'] or ''}{rule}"
    effect = f"[{colour}]{row['effect']}[/{colour}]"
    return [mark, case.name, request, effect, policy, row["reason"], row["decided_by"] or "handshake", latency]


def _show_count(attempts: int, rows: int) -> bool:
    sign = "=" if attempts == rows else "≠"
    out.print(f"{attempts} attempts, none retried {sign} {rows} rows of decisions and refusals in PostgreSQL\n")
    return attempts == rows


def _show_report(report: Report, file: Path) -> None:
    """Prints the first table of `report`, and writes the report to `file` with the suffixes of its forms."""
    shown, *_ = report.tables
    table = _table(*(column.name for column in shown.columns), title=report.title)
    for row in shown.rows:
        table.add_row(*(escape(_shown(cell)) for cell in row))
    out.print(table)
    file.parent.mkdir(parents=True, exist_ok=True)
    for form in (Format.CSV, Format.JSON, Format.HTML):
        file.with_suffix(f".{form}").write_bytes(write(report, form))
    out.print(f"Written to {file}.csv, {file}.json and {file}.html\n", markup=False)


async def _show_chain(connection: asyncpg.Connection[Any]) -> bool:
    verification = await verify_store(connection)
    for finding in verification.findings:
        err.print(f"[red]{escape(str(finding))}[/red]")
    state = "[green]holds[/green]" if verification.sound else "[red]is broken[/red]"
    out.print(f"The chain of {verification.records} records in {verification.spools} spools {state}.")
    return verification.sound
