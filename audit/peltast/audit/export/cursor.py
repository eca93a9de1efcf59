"""How far an export has got: a row in the store, advanced only when the receiver has what lies before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import asyncpg

__all__ = ["Cursor", "Standing", "Taken", "open_cursor", "standings"]

Connection: TypeAlias = "asyncpg.Connection[Any]"
Row = dict[str, Any]

BATCH_ROWS = 500
BATCH_BYTES = 1024 * 1024
"""Of record bodies. A record may be as large by itself."""

_LOCK_CLASS = 0x70656C74  # "pelt"


class Taken(RuntimeError):
    """The export cannot be begun so: it runs elsewhere, or it has a place already."""


@dataclass(frozen=True)
class Standing:
    """Where an export stands: the leaf that it sends next, and how many there are from that on."""

    name: str
    leaf: int
    lag: int
    updated: datetime


class Cursor:
    """The place of export `name`, which nobody else moves while `connection` lasts."""

    def __init__(self, connection: Connection, name: str, leaf: int) -> None:
        self._connection = connection
        self._name = name
        self.leaf = leaf

    async def read(self) -> Sequence[Row]:
        """The next records, in the order of the log; none when all were sent."""
        query = "SELECT * FROM records WHERE leaf >= $1 ORDER BY leaf LIMIT $2"
        rows = [dict(row) for row in await self._connection.fetch(query, self.leaf, BATCH_ROWS)]
        room = BATCH_BYTES
        for number, row in enumerate(rows):
            room -= len(row["body"])
            if room < 0:
                return rows[: max(number, 1)]
        return rows

    async def advance(self, leaf: int) -> None:
        """Every record before `leaf` was delivered."""
        await self._connection.execute(
            "UPDATE exports SET leaf = $2, updated = now() WHERE name = $1", self._name, leaf
        )
        self.leaf = leaf


async def open_cursor(connection: Connection, name: str, since: datetime | None) -> Cursor:
    """The cursor of export `name`: where it was, or else at the first record of `since`, or of all.

    Raises:
        Taken: see there.
    """
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1, hashtext($2))", _LOCK_CLASS, name):
        raise Taken(f"the export {name!r} is running already")
    leaf = await connection.fetchval("SELECT leaf FROM exports WHERE name = $1", name)
    if leaf is not None and since is not None:
        raise Taken(f"the export {name!r} has sent everything before record {leaf}: it goes on there, without --since")
    if leaf is None:
        leaf = await _first_leaf(connection, since)
        await connection.execute("INSERT INTO exports (name, leaf) VALUES ($1, $2)", name, leaf)
    return Cursor(connection, name, leaf)


async def _first_leaf(connection: Connection, since: datetime | None) -> int:
    if since is None:
        return 0
    query = "SELECT coalesce((SELECT min(leaf) FROM records WHERE time >= $1), (SELECT size FROM tree))"
    leaf: int = await connection.fetchval(query, since)
    return leaf


async def standings(connection: Connection) -> list[Standing]:
    """Every export, by name."""
    rows = await connection.fetch(
        "SELECT name, leaf, greatest(size - leaf, 0) AS lag, updated FROM exports, tree ORDER BY name"
    )
    return [Standing(**row) for row in rows]
