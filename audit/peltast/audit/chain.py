"""Verifying what is stored: every chain again from the bodies of its records, and the columns against the bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from peltast.audit.columns import COLUMNS, row
from peltast.authz._engine import first_link, verify_frames

__all__ = ["Finding", "Verification", "verify_store"]

_ROWS_AT_A_TIME = 2000


@dataclass(frozen=True)
class Finding:
    """Something in the store that is not as it was written."""

    spool: str
    sequence: int
    what: str


@dataclass(frozen=True)
class Verification:
    """What verifying found."""

    spools: int
    records: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


async def verify_store(connection: asyncpg.Connection[Any]) -> Verification:
    """Verifies every spool. The first finding of a spool ends the look at it: what follows it proves nothing."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        spools = await connection.fetch("SELECT spool, owner, sequence, link FROM spools ORDER BY spool")
        findings, records = [], 0
        for spool in spools:
            finding, count = await _verify_spool(connection, spool)
            records += count
            if finding is not None:
                findings.append(finding)
    return Verification(len(spools), records, tuple(findings))


async def _verify_spool(connection: asyncpg.Connection[Any], cursor: asyncpg.Record) -> tuple[Finding | None, int]:
    spool, end = cursor["spool"], cursor["sequence"]
    link, expected = first_link(), 1
    gaps = {
        gap["since"]: gap
        for gap in await connection.fetch(
            "SELECT since, until, link FROM gaps WHERE spool = $1 AND link IS NOT NULL", spool
        )
    }

    def finding(sequence: int, what: str) -> tuple[Finding, int]:
        return Finding(spool.hex(), sequence, what), expected - 1

    async for stored in _rows(connection, spool):
        if stored["sequence"] != expected and expected in gaps:  # noted when it was found: not lost in the store
            link, expected = gaps[expected]["link"], gaps[expected]["until"] + 1
        if stored["sequence"] != expected:
            return finding(expected, f"the record is missing; {stored['sequence']} follows")
        frame = len(stored["body"]).to_bytes(4, "little") + stored["body"] + stored["link"] + (stored["mac"] or b"")
        try:
            [record], _, link = verify_frames(expected - 1, link, frame)
        except ValueError:
            return finding(expected, "the record was altered: its link does not follow")
        said = zip(COLUMNS, row(spool, stored["leaf"], cursor["owner"], record), strict=True)
        if altered := [name for name, value in said if stored[name] != value]:
            return finding(expected, f"the row was altered: {', '.join(altered)} is not as in the record")
        expected += 1
    if expected - 1 != end or link != cursor["link"]:
        return finding(expected, f"records up to {end} were committed; they end here")
    return None, expected - 1


async def _rows(connection: asyncpg.Connection[Any], spool: bytes) -> AsyncIterator[asyncpg.Record]:
    query = f"SELECT {', '.join(COLUMNS)} FROM records WHERE spool = $1 ORDER BY sequence"  # noqa: S608 - our names
    async for stored in connection.cursor(query, spool, prefetch=_ROWS_AT_A_TIME):
        yield stored
