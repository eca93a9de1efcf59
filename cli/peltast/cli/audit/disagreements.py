"""``peltast audit disagreements``: calls of which the two sidecars do not tell the same."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from peltast.audit.disagreements import Disagreement
from peltast.audit.disagreements import disagreements as found_in
from peltast.cli.audit.connection import Database, StoreAway, connected
from peltast.cli.console import Output, out, print_error, print_json
from peltast.cli.options import OutputOption, State
from peltast.cli.up import short_principal

__all__ = ["disagreements"]

_COLUMNS = ("time", "what", "caller", "called", "request", "caller's status", "called's status", "detail", "records")


def disagreements(
    state: State = Path(".peltast"),
    database: Database = None,
    hours: Annotated[float, typer.Option(min=0, help="How far to look back.")] = 24,
    tolerance: Annotated[float, typer.Option(min=0, help="How far clocks may be apart, in seconds.")] = 60,
    output: OutputOption = Output.TEXT,
) -> None:
    """Shows calls that one sidecar has and the other lacks, or tells otherwise.

    They are joined by request id, principals and time. The caller chooses the request id: a call that is shown is a
    reason to look, and not a proof. Exits 0 if both sides agree on every call, 1 if not.
    """
    apart = timedelta(seconds=tolerance)
    until = datetime.now(UTC) - apart  # later calls may not have come from both sides
    try:
        found = asyncio.run(_found(state, database, until - timedelta(hours=hours), until, apart))
    except StoreAway as error:
        print_error(error)
        raise typer.Exit(1) from error
    if output is Output.JSON:
        print_json([{**dataclasses.asdict(each), "time": each.time.isoformat()} for each in found])
    else:
        _show(found)
    raise typer.Exit(1 if found else 0)


async def _found(
    state: Path, database: str | None, since: datetime, until: datetime, apart: timedelta
) -> list[Disagreement]:
    async with connected(state, database) as connection:
        return await found_in(connection, since, until, apart)


def _show(found: list[Disagreement]) -> None:
    if not found:
        out.print("Both sides agree on every call.")
        return
    table = Table(*(Column(name, overflow="fold") for name in _COLUMNS))
    for each in found:
        table.add_row(*(escape("" if cell is None else str(cell)) for cell in _cells(each)))
    out.print(table)


def _cells(each: Disagreement) -> tuple[object, ...]:
    records = " ".join(filter(None, (each.outbound, each.inbound)))
    return (
        f"{each.time:%Y-%m-%d %H:%M:%S}",
        each.what,
        short_principal(each.source),
        short_principal(each.destination),
        f"{each.method} {each.path or ''}",
        each.outbound_status,
        each.inbound_status,
        each.detail,
        records,
    )
