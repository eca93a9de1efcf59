"""``peltast audit query``: what is on record, asked for by time, identity, decision and what was requested."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import asyncpg
import typer
from typer.models import OptionInfo

from peltast.audit.query.parse import PARAMETERS, InvalidQuery, followed, parse
from peltast.audit.query.query import Query
from peltast.audit.query.read import Connection, counts, follow, last_leaf, leaf_before, stream
from peltast.audit.query.write import Form, writer, written
from peltast.audit.store.errors import DATABASE_ERRORS
from peltast.cli.audit.connection import Database, StoreAway, connected
from peltast.cli.console import err, print_error, run_until_stopped
from peltast.cli.options import State

__all__ = ["query"]

_STATE = Path(".peltast")
_MEASURED = 100
"""Rows by which the columns of a table are made wide."""


def _option(name: str, metavar: str) -> OptionInfo:
    option: OptionInfo = typer.Option(f"--{name.replace('_', '-')}", metavar=metavar, help=PARAMETERS[name].help)
    return option


def query(
    context: typer.Context,
    state: State = _STATE,
    database: Database = None,
    kind: Annotated[str | None, _option("kind", "requests|refusals|outbound|acts|events")] = None,
    since: Annotated[str | None, _option("since", "TIME")] = None,
    until: Annotated[str | None, _option("until", "TIME")] = None,
    principal: Annotated[str | None, _option("principal", "ID")] = None,
    destination: Annotated[str | None, _option("destination", "ID")] = None,
    namespace: Annotated[str | None, _option("namespace", "NAME")] = None,
    decision: Annotated[str | None, _option("decision", "allow|deny")] = None,
    policy: Annotated[str | None, _option("policy", "NAMESPACE/NAME")] = None,
    reason: Annotated[str | None, _option("reason", "REASON")] = None,
    path: Annotated[str | None, _option("path", "PATH")] = None,
    method: Annotated[str | None, _option("method", "METHOD")] = None,
    code: Annotated[str | None, _option("code", "CODE")] = None,
    interrupted: Annotated[str | None, _option("interrupted", "true|false")] = None,
    columns: Annotated[str | None, _option("columns", "COLUMN,…")] = None,
    count_by: Annotated[str | None, _option("count_by", "COLUMN,…")] = None,
    order: Annotated[str | None, _option("order", "newest|oldest")] = None,
    limit: Annotated[str | None, _option("limit", "NUMBER")] = None,
    follows: Annotated[
        bool, typer.Option("--follow", "-f", help="Rows as they are stored, from now on, or with --since from then on.")
    ] = False,
    output: Annotated[Form, typer.Option("--output", "-o", help="How rows are written.")] = Form.TABLE,
) -> None:
    """Shows what is on record: the newest 100 requests, or as the options say.

    Times are UTC. A column may be called as the filter is that is about it: `--count-by principal,code`.
    """
    given = {name: value for name, value in context.params.items() if name in PARAMETERS and value is not None}
    try:
        asked = _with_columns(parse(given, time.time_ns()), output)
        if follows:
            asked = _followed(asked, given, output)
    except InvalidQuery as error:
        print_error(InvalidQuery(f"--{error.parameter.replace('_', '-')}", error.given, error.allowed))
        raise typer.Exit(2) from None
    run_until_stopped(_follow(state, database, asked, output) if follows else _show(state, database, asked, output))


def _followed(asked: Query, given: dict[str, str], output: Form) -> Query:
    if output is Form.JSON:
        raise InvalidQuery("output", output, "table, jsonl, csv when following: a list would have no end")
    return followed(asked, given)


def _with_columns(asked: Query, output: Form) -> Query:
    if asked.columns or asked.counted:
        return asked
    return replace(asked, columns=asked.shape.shown if output is Form.TABLE else asked.shape.recorded)


async def _show(state: Path, database: str | None, asked: Query, output: Form) -> int:
    try:
        async with connected(state, database) as connection, aclosing(_rows(connection, asked)) as rows:
            await _print(rows, asked, output)
    except (StoreAway, *DATABASE_ERRORS) as error:
        print_error(error)
        return 1
    return 0


async def _rows(connection: Connection, asked: Query) -> AsyncGenerator[asyncpg.Record]:
    """What is asked for, and word of it if that is not all."""
    limit = asked.limit
    # One more shows whether there are more.
    asked = replace(asked, limit=limit and limit + 1)
    async with aclosing(counts(connection, asked) if asked.counted else stream(connection, asked)) as rows:
        number = 0
        async for row in rows:
            if number == limit:
                err.print(f"There are more than these {limit} rows; --limit 0 gives all.")
                return
            number += 1
            yield row


async def _print(
    rows: AsyncGenerator[asyncpg.Record], asked: Query, output: Form, *, measured: int = _MEASURED
) -> None:
    columns = [*asked.columns, "count"] if asked.counted else asked.columns
    to = writer(output, columns, terminal=sys.stdout.isatty())
    async for text in written(to, rows, measured=measured):
        # As it is: `echo` would take out what terminals obey, which is evidence where a file keeps it.
        sys.stdout.buffer.write(text.encode())
        if not measured:
            sys.stdout.buffer.flush()


async def _follow(state: Path, database: str | None, asked: Query, output: Form) -> int:
    try:
        async with connected(state, database) as connection:
            after = await last_leaf(connection) if asked.since is None else await leaf_before(connection, asked.since)
    except (StoreAway, *DATABASE_ERRORS) as error:
        print_error(error)
        return 1
    async with aclosing(follow(lambda: connected(state, database), asked, after)) as rows:
        await _print(rows, asked, output, measured=0)
    return 0
