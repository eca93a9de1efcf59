from __future__ import annotations

import hashlib
from typing import Any

import asyncpg
import pytest
from support.starts import take_in

from peltast.audit.collector.leaves import append_leaves
from peltast.audit.tree import TILE
from peltast.authz._engine import grow_tree, leaf_hash, tree_root

Connection = asyncpg.Connection


def leaves(size: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % index).digest() for index in range(size)]


async def tiles(owner: Connection, level: int) -> list[bytes]:
    rows = await owner.fetch("SELECT hashes FROM tiles WHERE level = $1 ORDER BY number", level)
    return [row["hashes"] for row in rows]


BATCHES = [
    pytest.param([255, 1], id="up to a tile's end"),
    pytest.param([255, 2], id="over a tile's end"),
    pytest.param([256, 256, 1], id="whole tiles"),
    pytest.param([1000, 24], id="several tiles at once"),
    pytest.param([1] * 5, id="one by one"),
    pytest.param([TILE * TILE - 300, 299, 2], id="over the end of a tile of the second level"),
    pytest.param([TILE * TILE * 2 + 1], id="two tiles of the second level at once"),
]


@pytest.mark.parametrize("batches", BATCHES)
async def test_whole_tiles_are_stored_and_the_rest_is_kept(
    collector: Connection, owner: Connection, batches: list[int]
) -> None:
    every, size = leaves(sum(batches)), 0
    for batch in batches:
        async with collector.transaction():
            assert await append_leaves(collector, b"".join(every[size : size + batch])) == size
        size += batch
    tree = await owner.fetchrow("SELECT size, frontier, tail FROM tree")
    assert tree is not None
    assert tree["size"] == size
    assert tree["frontier"] == grow_tree(0, b"", b"".join(every))
    stored = await tiles(owner, 0)
    assert len(stored) == size // TILE
    assert b"".join(stored) + tree["tail"] == b"".join(every)
    roots = [grow_tree(0, b"", tile) for tile in stored]
    whole = len(stored) // TILE * TILE
    assert b"".join(await tiles(owner, 1)) == b"".join(roots[:whole])


async def test_records_are_leaves_in_the_order_of_their_commits(
    collector: Connection, owner: Connection, stored: Any, principal: str
) -> None:
    other_spool = type(stored)(stored.root, stored.usage, principal + "-other")
    await take_in(collector, other_spool.id, other_spool.owner, other_spool.frames())
    rows = await owner.fetch("SELECT * FROM records ORDER BY leaf")
    assert [(row["spool"], row["sequence"]) for row in rows] == [
        *((stored.id, sequence) for sequence in (1, 2, 3, 4)),
        (other_spool.id, 1),
    ]
    hashes = [leaf_hash(row["spool"], row["sequence"], row["link"], row["owner"]) for row in rows]
    tree = await owner.fetchrow("SELECT size, frontier, tail FROM tree")
    assert tree is not None
    assert (tree["size"], tree["tail"]) == (5, b"".join(hashes))
    assert tree_root(5, tree["frontier"]) == tree_root(5, grow_tree(0, b"", b"".join(hashes)))


async def test_a_batch_that_is_refused_leaves_the_tree_as_it_was(
    collector: Connection, owner: Connection, stored: Any, principal: str
) -> None:
    before = await owner.fetchrow("SELECT * FROM tree")
    with pytest.raises(ValueError, match="byte 0"):
        await take_in(collector, stored.id, principal, b"\xff" * 100)
    assert await owner.fetchrow("SELECT * FROM tree") == before
