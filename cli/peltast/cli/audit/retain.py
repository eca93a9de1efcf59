"""``peltast audit retain``: dropping days whose time is over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Never

import structlog
import typer
from rich.markup import escape
from rich.table import Table

from peltast.audit.store import retention
from peltast.audit.store.embedded import SUPERUSER
from peltast.audit.store.errors import DATABASE_ERRORS
from peltast.audit.store.retention import SHORTEST_RETENTION_DAYS, Day
from peltast.cli.audit.connection import OwnersDatabase, connected, run_on_store
from peltast.cli.console import Output, out, print_json
from peltast.cli.operator_acts import note_act
from peltast.cli.options import OutputOption, State

__all__ = ["keep_retaining", "retain"]

EVERY_SECONDS = 24 * 3600.0
RETRY_SECONDS = 60.0

log = structlog.get_logger()


def retain(
    state: State,
    days: Annotated[
        int, typer.Option(min=SHORTEST_RETENTION_DAYS, metavar="N", help="Drop days more than N days back.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be dropped.")] = False,
    output: OutputOption = Output.TEXT,
    database: OwnersDatabase = None,
) -> None:
    """Drops the records of whole days, but none under a legal hold and none that no checkpoint covers.

    The hashes of what is dropped stay, and so do the checkpoints.
    """

    async def run() -> list[Day]:
        if not dry_run:
            return await _retain_and_note(state, database, days)
        async with connected(state, database, SUPERUSER) as connection:
            return await retention.retain(connection, days, dry_run=True)

    _show(run_on_store(run()), output, "would be dropped" if dry_run else "dropped")


async def keep_retaining(state: Path, database: str | None, days: int) -> Never:
    """Drops what is due now and each day, for ever."""
    while True:
        try:
            await _retain_and_note(state, database, days)
            await asyncio.sleep(EVERY_SECONDS)
        except (OSError, *DATABASE_ERRORS) as error:
            log.warning("nothing dropped", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)


async def _retain_and_note(state: Path, database: str | None, days: int) -> list[Day]:
    async with connected(state, database, SUPERUSER) as connection:
        found = await retention.retain(connection, days)
    for each in found:
        if each.kept is None:
            await note_act(state, "partition.drop", str(each.day), f"{each.records} records; {days} days are kept")
    return found


def _show(found: list[Day], output: Output, done: str) -> None:
    if output is Output.JSON:
        print_json([{**vars(each), "day": str(each.day)} for each in found])
        return
    table = Table("day", "records", "leaves", "", box=None)
    for each in found:
        leaves = "" if each.first_leaf is None else f"{each.first_leaf}-{each.last_leaf}"
        what = done if each.kept is None else f"kept: {each.kept}"
        table.add_row(str(each.day), str(each.records), leaves, escape(what))
    out.print(table)
