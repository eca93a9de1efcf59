"""Verifying what is stored: every chain again, from the bodies of its records."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from peltast.authz._engine import first_link, next_link

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
        spools = await connection.fetch("SELECT spool, sequence, link FROM spools ORDER BY spool")
        findings, records = [], 0
        for spool in spools:
            finding, count = await _verify_spool(connection, spool["spool"], spool["sequence"], spool["link"])
            records += count
            if finding is not None:
                findings.append(finding)
    return Verification(len(spools), records, tuple(findings))


async def _verify_spool(
    connection: asyncpg.Connection[Any], spool: bytes, end: int, end_link: bytes
) -> tuple[Finding | None, int]:
    link, expected = first_link(), 1
    async for row in _rows(connection, spool):
        sequence = row["sequence"]
        if sequence != expected:
            return Finding(spool.hex(), expected, f"the record is missing; {sequence} follows"), expected - 1
        link = next_link(link, row["body"])
        if link != row["link"]:
            return Finding(spool.hex(), sequence, "the record was altered: its link does not follow"), expected - 1
        expected += 1
    if expected - 1 != end or link != end_link:
        return Finding(spool.hex(), expected, f"records up to {end} were committed; they end here"), expected - 1
    return None, expected - 1


async def _rows(connection: asyncpg.Connection[Any], spool: bytes) -> AsyncIterator[asyncpg.Record]:
    query = "SELECT sequence, body, link FROM records WHERE spool = $1 ORDER BY sequence"
    async for row in connection.cursor(query, spool, prefetch=_ROWS_AT_A_TIME):
        yield row
