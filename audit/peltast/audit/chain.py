"""Verifying what is stored: every record's chain and columns, and the tree over all of them against what was signed.

All rows are read once, in the order of their leaves, and looked at by the engine (`authz/engine/src/stored.rs`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeAlias

import asyncpg

from peltast.audit.checkpoint import VerifierKey
from peltast.audit.columns import COLUMNS, row
from peltast.audit.findings import Finding, Findings
from peltast.audit.regrown import TILE_BYTES, Regrown, tile_roots
from peltast.audit.signed import Notes, store_evidence
from peltast.audit.tree import HASH_BYTES, TILE
from peltast.audit.writers import Awaited, Trust, check_heads, check_starts
from peltast.authz._engine import Walk, leaf_hash, read_record

__all__ = ["Finding", "Gap", "OpenSpool", "Verification", "verify_store"]

_CHUNK = 64 * TILE
"""Leaves that are looked at together."""

_SUSPECTS_AT_A_TIME = 1000
_NOT_IN_THE_BODY = frozenset({"mac"})

Connection: TypeAlias = "asyncpg.Connection[Any]"


@dataclass(frozen=True)
class OpenSpool:
    """A spool that was not closed: it is still written, or its writer died."""

    spool: str
    owner: str
    start: str | None
    start_index: int | None
    last_seen: datetime


@dataclass(frozen=True)
class Gap:
    """Records that never came, which is on record."""

    spool: str
    since: int
    until: int
    reason: str


@dataclass(frozen=True)
class Verification:
    """What verifying found. `dropped` records were there once, and are in the tree."""

    spools: int
    records: int
    dropped: int
    checkpoints: int
    gaps: tuple[Gap, ...]
    open: tuple[OpenSpool, ...]
    awaited: tuple[Awaited, ...]
    findings: tuple[Finding, ...]
    more_findings: int

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def _silent(_done: int, _total: int) -> None:
    pass


async def verify_store(
    connection: Connection,
    key: VerifierKey | None = None,
    published: Notes = MappingProxyType({}),
    trust: Trust | None = None,
    progress: Callable[[int, int], None] = _silent,
) -> Verification:
    """Verifies everything, as it stood at one moment; `progress` is told how many leaves of how many are done.

    Without a `key`, no signature is looked at: what checkpoints say is then worth as much as the rest of the store.
    Without `trust`, it is not asked whose the spools are.
    The connection's role must see every row.
    """
    findings = Findings()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        evidence = await store_evidence(connection, key, published, findings)
        verifier = _Verifier(connection, Regrown(evidence, findings), findings)
        await verifier.begin()
        stated = await check_starts(connection, trust, verifier.walk, findings) if trust is not None else []
        await verifier.walk_all(progress)
        await verifier.end()
        awaited = await check_heads(connection, stated, findings)
        gaps = await connection.fetch("SELECT spool, since, until, reason FROM gaps ORDER BY spool, since")
        left_open = await connection.fetch(
            "SELECT spool, owner, start, start_index, last_seen FROM spools WHERE NOT closed ORDER BY last_seen, spool"
        )
        told = tuple(await _named(connection, findings.told))
    return Verification(
        spools=verifier.spools,
        records=verifier.records,
        dropped=verifier.dropped,
        checkpoints=len(evidence),
        gaps=tuple(Gap(gap["spool"].hex(), gap["since"], gap["until"], gap["reason"]) for gap in gaps),
        open=tuple(_open(spool) for spool in left_open),
        awaited=tuple(awaited),
        findings=told,
        more_findings=findings.count - len(told),
    )


def _open(spool: asyncpg.Record) -> OpenSpool:
    start = spool["start"].hex() if spool["start"] is not None else None
    return OpenSpool(spool["spool"].hex(), spool["owner"], start, spool["start_index"], spool["last_seen"])


async def _named(connection: Connection, findings: list[Finding]) -> list[Finding]:
    """`findings`, with the record for those of which only the leaf is known."""
    leaves = [finding.leaf for finding in findings if finding.spool is None and finding.leaf is not None]
    rows = await connection.fetch("SELECT leaf, spool, sequence FROM records WHERE leaf = ANY($1)", leaves)
    names = {row["leaf"]: (row["spool"].hex(), row["sequence"]) for row in rows}
    return [
        Finding(each.what, *names[each.leaf], each.leaf) if each.spool is None and each.leaf in names else each
        for each in findings
    ]


class _Verifier:
    """One walk over all leaves."""

    def __init__(self, connection: Connection, regrown: Regrown, findings: Findings) -> None:
        self.spools = self.records = self.dropped = 0
        self._connection = connection
        self._regrown = regrown
        self._findings = findings
        self.walk = Walk(COLUMNS)
        self._suspects: list[int] = []

    async def begin(self) -> None:
        """Reads what is small: cursors, what is known to be missing, the tree."""
        tree = await self._connection.fetchrow("SELECT size, frontier, tail FROM tree")
        assert tree is not None, "the migration inserts it"
        self._tree = tree
        self._cursors = {
            cursor["spool"]: cursor
            for cursor in await self._connection.fetch("SELECT spool, owner, sequence, link FROM spools")
        }
        self.spools = len(self._cursors)
        for cursor in self._cursors.values():
            self.walk.own(cursor["spool"], cursor["owner"])
        gaps = "SELECT spool, since, until, link FROM gaps WHERE link IS NOT NULL"
        for gap in await self._connection.fetch(gaps):
            self.walk.miss(gap["spool"], gap["since"], gap["until"], gap["link"])
        await self._begin_dropped()
        newest = await self._connection.fetchval("SELECT coalesce(max(leaf), -1) + 1 FROM records")
        self._end: int = max(newest, self._dropped_end)
        if self._end < tree["size"]:
            self._findings.add(
                f"the newest records are missing: the tree has {tree['size']}, and {self._end} are there"
            )

    async def _begin_dropped(self) -> None:
        runs = await self._connection.fetch("SELECT spool, since, until, leaf, link FROM dropped_records")
        days = await self._connection.fetch("SELECT records, first_leaf, last_leaf FROM dropped_partitions")
        self.dropped = sum(day["records"] for day in days)
        self._dropped_days = [(day["first_leaf"], day["last_leaf"]) for day in days if day["records"]]
        self._dropped_end = max((last + 1 for _, last in self._dropped_days), default=0)
        self._dropped_ends = {run["leaf"]: run for run in runs}
        for run in runs:
            self.walk.miss(run["spool"], run["since"], run["until"], run["link"])

    # Leaves -----------------------------------------------------------------------------------------------------------

    async def walk_all(self, progress: Callable[[int, int], None]) -> None:
        """Goes over every row, and grows the tree of them."""
        total = min(self._end, self._tree["size"])
        async for start, end, copied, stored in self._chunks(total):
            numbers, hashes, suspects = await asyncio.to_thread(self.walk.rows, copied)
            self.records += len(numbers)
            self._note(suspects)
            if numbers != list(range(start, end)) or hashes != stored:
                hashes = self._sorted_out(start, end, numbers, hashes, stored)
            self._regrown.grow(hashes)
            progress(end, total)

    async def _chunks(self, total: int) -> AsyncIterator[tuple[int, int, bytes, bytes]]:
        """Leaves from, to; their rows; their hashes as they are stored. The next are fetched meanwhile."""
        starts = range(0, max(total, 1), _CHUNK)
        fetched = asyncio.ensure_future(self._chunk(0, total))
        try:
            for start in starts:
                chunk = await fetched
                if start + _CHUNK < total:
                    fetched = asyncio.ensure_future(self._chunk(start + _CHUNK, total))
                yield chunk
        finally:
            fetched.cancel()

    async def _chunk(self, start: int, total: int) -> tuple[int, int, bytes, bytes]:
        end = min(start + _CHUNK, total)
        # What lies before the first leaf or behind the last one is looked at with them.
        within = [f"leaf >= {start}"] * (start > 0) + [f"leaf < {end}"] * (end < total) or ["true"]
        query = f"SELECT {', '.join(COLUMNS)} FROM records WHERE {' AND '.join(within)} ORDER BY leaf"  # noqa: S608 - ours
        copied: list[bytes] = []

        async def keep(data: bytes) -> None:
            copied.append(data)

        await self._connection.copy_from_query(query, output=keep, format="binary")
        return start, end, b"".join(copied), await self._stored_hashes(start, end)

    async def _stored_hashes(self, start: int, end: int) -> bytes:
        """The leaves' hashes, as tiles have them; zeros where a tile is missing."""
        whole = self._tree["size"] // TILE
        numbers = range(start // TILE, min(-(-end // TILE), whole))
        query = "SELECT number, hashes FROM tiles WHERE level = 0 AND number >= $1 AND number < $2"
        found = dict(await self._connection.fetch(query, numbers.start, numbers.stop))
        for number in numbers:
            if number not in found:
                self._findings.add(f"tile {number} of level 0 is missing", leaf=number * TILE)
        hashes = b"".join(found.get(number, bytes(TILE_BYTES)) for number in numbers)
        rest = self._tree["tail"] if end > whole * TILE else b""
        return (hashes + rest)[: (end - start) * HASH_BYTES]

    def _note(self, suspects: list[tuple[int, bytes, int, str, int | None]]) -> None:
        for leaf, spool, sequence, fault, due in suspects:
            if fault == "columns":
                self._suspects.append(leaf)
            elif fault == "code":
                self._findings.add("the record is not by its spool's writer: its code differs", spool, sequence, leaf)
            elif fault == "link":
                self._findings.add("the record was altered: its link does not follow", spool, sequence, leaf)
            elif due is not None and due < sequence:
                self._findings.add(f"the record is missing; {sequence} follows", spool, due)
            else:
                self._findings.add(f"the record is out of its order: {due} is due", spool, sequence, leaf)

    def _sorted_out(self, start: int, end: int, numbers: list[int], hashes: bytes, stored: bytes) -> bytes:
        """The hashes of all leaves from `start` to before `end`, where rows are missing, too many, or other ones."""
        found: dict[int, bytes] = {}
        for index, number in enumerate(numbers):
            if number in found or not start <= number < end:
                self._findings.add("the row has a leaf of another record, or one beyond the tree's end", leaf=number)
            found.setdefault(number, _hash(hashes, index))
        return b"".join(self._leaf(leaf, found.get(leaf), _hash(stored, leaf - start)) for leaf in range(start, end))

    def _leaf(self, leaf: int, found: bytes | None, stored: bytes) -> bytes:
        if found is None:
            self._check_dropped(leaf, stored)
            return stored.ljust(HASH_BYTES, b"\0")
        if stored != found:
            self._findings.add("the tree has another record here: the record or the tile was altered", leaf=leaf)
        return found

    def _check_dropped(self, leaf: int, stored: bytes) -> None:
        if not any(first <= leaf <= last for first, last in self._dropped_days):
            self._findings.add(f"the record of leaf {leaf} is missing", leaf=leaf)
        run = self._dropped_ends.get(leaf)
        if run is not None and run["spool"] in self._cursors:
            owner = self._cursors[run["spool"]]["owner"]
            if leaf_hash(run["spool"], run["until"], run["link"], owner) != stored:
                self._findings.add("the note of what was dropped was altered", run["spool"], run["until"], leaf)

    # The end ----------------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Compares where everything ends, and looks again at rows that are suspected."""
        self._regrown.end()
        await self._check_tiles_above()
        if self._regrown.size == self._tree["size"]:
            if self._regrown.frontier != self._tree["frontier"]:
                self._findings.add("the tree's frontier was altered")
            if self._regrown.tail != self._tree["tail"]:
                self._findings.add("the tree's tail was altered", leaf=self._regrown.size // TILE * TILE)
        for spool, cursor in self._cursors.items():
            sequence, link = self.walk.end(spool)
            if (sequence, link) != (cursor["sequence"], cursor["link"]):
                told = f"records up to {cursor['sequence']} were committed; they end here"
                self._findings.add(told, spool, sequence + 1)
        for spool in self.walk.spools():
            if spool not in self._cursors:
                self._findings.add("the spool has records, and no place where it stands", spool, 1)
        for start in range(0, len(self._suspects), _SUSPECTS_AT_A_TIME):
            await self._check_columns(self._suspects[start : start + _SUSPECTS_AT_A_TIME])

    async def _check_tiles_above(self) -> None:
        """Tiles above level 0 are made of those below; and none is there that should not be."""
        level, roots, numbers = 0, bytes(self._regrown.roots), len(self._regrown.roots) // HASH_BYTES
        while True:
            beyond = await self._connection.fetchval(
                "SELECT min(number) FROM tiles WHERE level = $1 AND (number >= $2 OR number < 0)", level, numbers
            )
            if beyond is not None:
                self._findings.add(f"tile {beyond} of level {level} is beyond the tree's end")
            level, numbers = level + 1, len(roots) // TILE_BYTES
            query = "SELECT number, hashes FROM tiles WHERE level = $1"
            found = dict(await self._connection.fetch(query, level))
            for number in range(numbers):
                if found.get(number) != roots[number * TILE_BYTES : (number + 1) * TILE_BYTES]:
                    self._findings.add(f"tile {number} of level {level} is missing, or was altered")
            if not numbers and not found:
                return
            roots = tile_roots(roots)

    async def _check_columns(self, leaves: list[int]) -> None:
        """Compares rows as they are written, with all that this takes."""
        query = f"SELECT {', '.join(COLUMNS)} FROM records WHERE leaf = ANY($1) ORDER BY leaf"  # noqa: S608 - ours
        for stored in await self._connection.fetch(query, leaves):
            if what := self._altered(stored):
                self._findings.add(f"the row was altered: {what}", stored["spool"], stored["sequence"], stored["leaf"])

    def _altered(self, stored: asyncpg.Record) -> str | None:
        cursor = self._cursors.get(stored["spool"])
        owner = cursor["owner"] if cursor is not None else stored["owner"]
        try:
            record = read_record(stored["body"], stored["link"])
        except ValueError as error:
            return f"its body is no record: {error}"
        said = zip(COLUMNS, row(stored["spool"], stored["leaf"], owner, record), strict=True)
        altered = [name for name, value in said if stored[name] != value and name not in _NOT_IN_THE_BODY]
        return f"{', '.join(altered)} is not as in the record" if altered else None


def _hash(hashes: bytes, index: int) -> bytes:
    return hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
