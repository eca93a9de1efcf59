"""``peltast audit export``: sends the log on."""

from __future__ import annotations

import importlib.metadata
import os
import re
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from peltast.audit.export.cursor import Standing, Taken, open_cursor, standings
from peltast.audit.export.receiver import Receiver, Refused
from peltast.audit.export.send import send_all
from peltast.audit.export.target import InvalidTarget, Trust, open_receiver, read_secret
from peltast.audit.store.errors import DATABASE_ERRORS
from peltast.audit.store.migrate import EXPORTER_ROLE
from peltast.cli.audit.connection import Database, StoreAway, connected
from peltast.cli.console import Output, err, out, print_error, print_json, run_until_stopped
from peltast.cli.logs import log_to_stderr
from peltast.cli.operator_acts import note_act
from peltast.cli.options import OutputOption, State

__all__ = ["export"]

AUTHORIZATION_VARIABLE = "PELTAST_EXPORT_AUTHORIZATION"

_STATE = Path(".peltast")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def _name(name: str | None) -> str | None:
    if name is not None and not _NAME.fullmatch(name):
        raise typer.BadParameter(f"{name!r}: lower-case letters, digits and hyphens are expected, at most 63")
    return name


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: a time such as 2026-11-21T20:00:00Z is expected") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def export(
    name: Annotated[str | None, typer.Argument(callback=_name, help="The export: its place is kept by it.")] = None,
    to: Annotated[
        str | None, typer.Option(metavar="URL", help="syslog+tcp, syslog+tls, otlp+http(s), http(s) or file:///FOLDER.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Where a new export begins. Default: the first.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when everything there is was sent.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Show the exports, and how far they are.")] = False,
    authority: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates to trust instead of the system's.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Our certificate and key in PEM, mode 0600.")
    ] = None,
    authorization: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"What HTTP's Authorization says, mode 0600. Or by {AUTHORIZATION_VARIABLE}."
        ),
    ] = None,
    state: State = _STATE,
    database: Database = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Sends every record to a SIEM as OCSF, at least once and in order, and goes on where it was."""
    log_to_stderr()
    if list_:
        run_until_stopped(_list(state, database, output))
    if name is None or to is None:
        raise typer.BadParameter("NAME and --to URL are expected, or --list")
    begins = _time(since)
    try:
        trust = Trust(authority, certificate, _authorization(authorization))
        receiver = open_receiver(to, name, trust)
    except InvalidTarget as error:
        print_error(error)
        raise typer.Exit(1) from None
    run_until_stopped(_export(state, database, name, receiver, to, begins, once))


def _authorization(file: Path | None) -> str:
    """Out of the environment at once: children must not inherit it."""
    from_environment = os.environ.pop(AUTHORIZATION_VARIABLE, "")
    return read_secret(file) if file is not None else from_environment


async def _export(
    state: Path, database: str | None, name: str, receiver: Receiver, to: str, since: datetime | None, once: bool
) -> int:
    try:
        async with connected(state, database, EXPORTER_ROLE) as connection:
            cursor = await open_cursor(connection, name, since)
            await note_act(state, "audit.exported", name, f"begins at record {cursor.leaf}, to {to}")
            try:
                await send_all(cursor, receiver, importlib.metadata.version("peltast"), once=once)
            finally:
                await note_act(state, "audit.exported", name, f"ends before record {cursor.leaf}")
                await receiver.close()
    except (StoreAway, Taken, Refused, OSError, *DATABASE_ERRORS) as error:
        print_error(error)
        return 1
    err.print(f"Everything before record {cursor.leaf} is sent.")
    return 0


async def _list(state: Path, database: str | None, output: Output) -> int:
    try:
        async with connected(state, database, EXPORTER_ROLE) as connection:
            listed = await standings(connection)
    except (StoreAway, *DATABASE_ERRORS) as error:
        print_error(error)
        return 1
    if output is Output.JSON:
        print_json([_as_json(each) for each in listed])
    else:
        out.print(_table(listed))
    return 0


def _as_json(standing: Standing) -> dict[str, Any]:
    return {**asdict(standing), "updated": standing.updated.isoformat()}


def _table(listed: list[Standing]) -> Table:
    table = Table("export", "next record", "lag", "updated", box=None)
    for each in listed:
        table.add_row(each.name, str(each.leaf), str(each.lag), each.updated.isoformat(timespec="seconds"))
    return table
