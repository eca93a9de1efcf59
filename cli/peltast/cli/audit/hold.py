"""``peltast audit hold``: days that are kept although their time is over."""

from __future__ import annotations

from datetime import date
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from peltast.audit.store.embedded import SUPERUSER
from peltast.audit.store.holds import Hold, add_hold, holds, remove_hold
from peltast.cli.audit.connection import OwnersDatabase, connected, run_on_store
from peltast.cli.console import Output, out, print_json
from peltast.cli.operator_acts import note_act
from peltast.cli.options import OutputOption, State

__all__ = ["app"]

app = typer.Typer(help="Legal holds: days that are kept although their time is over.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The hold's name.")]


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: a day such as 2026-11-22 is expected") from None


@app.command("add")
def add(
    name: Name,
    state: State,
    since: Annotated[date, typer.Option(metavar="DAY", parser=_day, help="First day, in UTC.")],
    until: Annotated[date, typer.Option(metavar="DAY", parser=_day, help="Last day, in UTC.")],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for whoever asks later.")],
    database: OwnersDatabase = None,
) -> None:
    """Keeps every record of some days until the hold is removed, whatever retention says."""

    async def run() -> None:
        hold = Hold(name, since, until, reason)
        async with connected(state, database, SUPERUSER) as connection:
            await add_hold(connection, hold)
        await note_act(state, "hold.add", f"{name} {since} {until}", reason)

    run_on_store(run())
    out.print(f"Held: {name}, {since} to {until}", markup=False)


@app.command("list")
def list_(state: State, output: OutputOption = Output.TEXT, database: OwnersDatabase = None) -> None:
    """Lists the holds in force."""

    async def run() -> list[Hold]:
        async with connected(state, database, SUPERUSER) as connection:
            return await holds(connection)

    listed = run_on_store(run())
    if output is Output.JSON:
        print_json([{**vars(each), "since": str(each.since), "until": str(each.until)} for each in listed])
    else:
        table = Table("name", "since", "until", "reason", box=None)
        for each in listed:
            table.add_row(escape(each.name), str(each.since), str(each.until), escape(each.reason))
        out.print(table)


@app.command("remove")
def remove(name: Name, state: State, database: OwnersDatabase = None) -> None:
    """Ends a hold. What it kept is dropped when retention next runs."""

    async def run() -> None:
        async with connected(state, database, SUPERUSER) as connection:
            await remove_hold(connection, name)
        await note_act(state, "hold.remove", name)

    run_on_store(run())
    out.print(f"No longer held: {name}", markup=False)
