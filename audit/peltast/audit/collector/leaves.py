"""Growing the tree: its frontier, and every tile that becomes whole."""

from __future__ import annotations

from typing import Any, TypeAlias

import asyncpg

from peltast.audit.tree import HASH_BYTES, TILE
from peltast.authz._engine import grow_tree

__all__ = ["append_leaves"]

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"

_TILE_BYTES = TILE * HASH_BYTES


async def append_leaves(connection: Connection, leaves: bytes) -> int:
    """Appends leaves, given as their hashes; gives the number of the first.

    Nobody else appends any until the transaction ends: leaves have the order of the commits.
    """
    tree = await connection.fetchrow("SELECT size, frontier, tail FROM tree FOR UPDATE")
    assert tree is not None, "the migration inserts it"
    size: int = tree["size"]
    hashes = tree["tail"] + leaves
    whole = len(hashes) - len(hashes) % _TILE_BYTES
    if whole:
        await _store_tiles(connection, 0, size // TILE, hashes[:whole])
    await connection.execute(
        "UPDATE tree SET size = $1, frontier = $2, tail = $3",
        size + len(leaves) // HASH_BYTES,
        grow_tree(size, tree["frontier"], leaves),
        hashes[whole:],
    )
    return size


async def _store_tiles(connection: Connection, level: int, number: int, hashes: bytes) -> None:
    """Stores whole tiles from `number` on, and those of the level above that they complete."""
    tiles = [hashes[start : start + _TILE_BYTES] for start in range(0, len(hashes), _TILE_BYTES)]
    rows = [(level, number + index, tile) for index, tile in enumerate(tiles)]
    await connection.copy_records_to_table("tiles", records=rows)
    first, end = number // TILE, (number + len(tiles)) // TILE
    if end > first:
        before = await connection.fetch(
            "SELECT hashes FROM tiles WHERE level = $1 AND number >= $2 AND number < $3 ORDER BY number",
            level,
            first * TILE,
            number,
        )
        roots = b"".join(grow_tree(0, b"", tile) for tile in [*(row["hashes"] for row in before), *tiles])
        await _store_tiles(connection, level + 1, first, roots[: (end - first) * _TILE_BYTES])
