"""How commands reach the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import asyncpg
import typer

from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.errors import DATABASE_ERRORS
from peltast.audit.store.migrate import AUDITOR_ROLE
from peltast.audit.store.url import check_database_url, without_password
from peltast.cli.console import print_error
from peltast.cli.settings import sockets_folder

__all__ = ["Database", "OwnersDatabase", "StoreAway", "connected", "run_on_store", "store_url"]

Database = Annotated[
    str | None,
    typer.Option(metavar="URL", help="PostgreSQL, as a role that may read the log. Default: the mesh's embedded one."),
]

OwnersDatabase = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="PostgreSQL, as the store's owner. Default: embedded.")
]


class StoreAway(ConnectionError):
    """The store cannot be reached."""


def store_url(state: Path, database: str | None, role: str = AUDITOR_ROLE) -> str:
    """Where the store of the mesh with this state is reached as `role`, unless `database` says where."""
    if database is not None:
        return check_database_url(database)
    return EmbeddedPostgres(state / "postgres", sockets_folder(state) / "pg").url(role)


@asynccontextmanager
async def connected(
    state: Path, database: str | None, role: str = AUDITOR_ROLE
) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection to the store, while the context lasts.

    Raises:
        StoreAway: see there.
        DatabaseUnusable: `database` is no URL that is taken.
    """
    url = store_url(state, database, role)
    try:
        connection = await asyncpg.connect(url)
    except (OSError, *DATABASE_ERRORS) as error:
        raise StoreAway(
            f"{without_password(url)}: {error}. Is `peltast up` running with this state? Else give --database"
        ) from error
    try:
        yield connection
    finally:
        await connection.close()


_Result = TypeVar("_Result")


def run_on_store(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a command's `work`. What users can cause is said, and ends the command with 1."""
    try:
        return asyncio.run(work)
    except (StoreAway, ValueError, *DATABASE_ERRORS) as error:
        print_error(error)
        raise typer.Exit(1) from None
