"""``peltast audit auditor``: who may read the log, and of which namespaces."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import asyncpg
import typer
from rich.table import Table

from peltast.audit.store.auditors import Auditor, add_auditor, auditors, remove_auditor
from peltast.audit.store.embedded import SUPERUSER
from peltast.cli.audit.connection import OwnersDatabase, connected, run_on_store
from peltast.cli.console import Output, out, print_json
from peltast.cli.operator_acts import note_act
from peltast.cli.options import OutputOption, State

__all__ = ["app"]

app = typer.Typer(help="Who may read the log, and of which namespaces.", no_args_is_help=True)

Role = Annotated[str, typer.Argument(metavar="ROLE", help="A role of PostgreSQL.")]
Namespace = Annotated[str, typer.Option(metavar="NS", help="A namespace; * is all, and the control plane's acts.")]


@app.command("add")
def add(role: Role, state: State, namespace: Namespace, database: OwnersDatabase = None) -> None:
    """Lets a role read what was recorded in a namespace. The role is made where it is missing, without a password."""
    _change(state, database, add_auditor, "auditor.add", role, namespace)
    out.print(f"{role} sees {namespace}", markup=False)


@app.command("remove")
def remove(role: Role, state: State, namespace: Namespace, database: OwnersDatabase = None) -> None:
    """Takes a namespace away from a role; with the last one, the role goes."""
    _change(state, database, remove_auditor, "auditor.remove", role, namespace)
    out.print(f"{role} no longer sees {namespace}", markup=False)


@app.command("list")
def list_(state: State, output: OutputOption = Output.TEXT, database: OwnersDatabase = None) -> None:
    """Lists auditors with their namespaces."""

    async def run() -> list[Auditor]:
        async with connected(state, database, SUPERUSER) as connection:
            return await auditors(connection)

    listed = run_on_store(run())
    if output is Output.JSON:
        print_json([vars(each) for each in listed])
    else:
        table = Table("role", "namespace", box=None)
        for each in listed:
            table.add_row(each.role, each.namespace)
        out.print(table)


Change: TypeAlias = "Callable[[asyncpg.Connection[Any], Auditor], Awaitable[None]]"


def _change(state: Path, database: str | None, change: Change, action: str, role: str, namespace: str) -> None:
    async def run() -> None:
        auditor = Auditor(role, namespace)
        async with connected(state, database, SUPERUSER) as connection:
            await change(connection, auditor)
        await note_act(state, action, f"{role} {namespace}")

    run_on_store(run())
