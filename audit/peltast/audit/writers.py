"""Whose the spools of a store are: what agents stated when they started their writers, checked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from peltast.audit.findings import Findings
from peltast.audit.start import BadStart, Statement, check_start, open_root
from peltast.authz._engine import Walk

__all__ = ["Awaited", "Trust", "check_heads", "check_starts"]

Connection: TypeAlias = "asyncpg.Connection[Any]"


@dataclass(frozen=True)
class Trust:
    """By what writers are known."""

    roots: Sequence[x509.Certificate]
    """The trust bundle: of it are the SVIDs that sign starts."""
    sealing: X25519PrivateKey | None = None
    """The collector's: with it, the codes of all records are compared."""


@dataclass(frozen=True)
class Awaited:
    """What an agent stated to be there when it started anew, and has not come."""

    what: str
    owner: str
    start: str


async def check_starts(
    connection: Connection, trust: Trust, walk: Walk, findings: Findings
) -> list[tuple[str, Statement]]:
    """Checks the start of every spool, and lets `walk` know the keys that can be known; gives the starts and whose."""
    stated: dict[bytes, tuple[str, Statement]] = {}
    spools = await connection.fetch(
        "SELECT spool, spools.owner, sequence, spools.start, start_index, statement "
        "FROM spools LEFT JOIN starts USING (start) ORDER BY spools.start, start_index"
    )
    for spool in spools:
        if spool["statement"] is None:
            if spool["sequence"] > 0:
                findings.add("the spool's start is not on record: nobody can tell whose it is", spool["spool"], 1)
            continue
        try:
            statement = _checked(spool, trust)
            if trust.sealing is not None:
                walk.authenticate(spool["spool"], open_root(statement, trust.sealing), spool["start_index"])
            stated[statement.hash] = spool["owner"], statement
        except BadStart as error:
            findings.add(str(error), spool["spool"], 1)
    return list(stated.values())


def _checked(spool: asyncpg.Record, trust: Trust) -> Statement:
    statement = check_start(spool["statement"], spool["owner"], trust.roots)
    if statement.hash != spool["start"]:
        raise BadStart("the start was altered: it is not the one that the spool names")
    return statement


async def check_heads(
    connection: Connection, stated: Sequence[tuple[str, Statement]], findings: Findings
) -> list[Awaited]:
    """Compares what agents stated about the past with what is stored; gives what is not: it may come yet."""
    known = {start["start"] for start in await connection.fetch("SELECT start FROM starts")}
    awaited = [
        Awaited(f"the start {statement.previous.hex()}", owner, statement.hash.hex())
        for owner, statement in stated
        if statement.previous and statement.previous not in known
    ]
    for owner, statement in stated:
        links = await _stored_links(connection, statement)
        for head in statement.heads:
            link = links.get((head.spool, head.sequence))
            if link is None:
                what = f"records of spool {head.spool.hex()} up to {head.sequence}"
                awaited.append(Awaited(what, owner, statement.hash.hex()))
            elif link != head.link:
                told = f"its agent had another record here when it started {statement.hash.hex()}"
                findings.add(told, head.spool, head.sequence)
    return awaited


async def _stored_links(connection: Connection, statement: Statement) -> dict[tuple[bytes, int], bytes]:
    """Links of the records that `statement` tells of. Of one that retention dropped, the one that is stated."""
    heads = [head for head in statement.heads if 0 < head.sequence < 2**63]
    told = ([head.spool for head in heads], [head.sequence for head in heads], [head.link for head in heads])
    rows = await connection.fetch(
        "WITH heads AS (SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[]) AS heads (spool, sequence, link)) "
        "SELECT spool, sequence, records.link FROM heads JOIN records USING (spool, sequence) UNION ALL "
        "SELECT heads.spool, sequence, CASE until WHEN sequence THEN dropped_records.link ELSE heads.link END "
        "FROM heads JOIN dropped_records ON dropped_records.spool = heads.spool AND sequence BETWEEN since AND until",
        *told,
    )
    return {(row["spool"], row["sequence"]): row["link"] for row in rows}
