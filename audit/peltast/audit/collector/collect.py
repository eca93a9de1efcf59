"""Taking in one batch: the chain is checked, the rows are copied and the spool's place advanced, in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import asyncpg
import structlog

from peltast.audit.collector.leaves import append_leaves
from peltast.audit.columns import COLUMNS, MAX_BIGINT, row
from peltast.authz._engine import Record, first_link, leaf_hashes, skip_frames, verify_frames

__all__ = ["BadBatch", "NotTheOwner", "take_in"]

log = structlog.get_logger()

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"


class NotTheOwner(PermissionError):
    """A spool is shipped by another identity than the one that it belongs to."""


class BadBatch(ValueError):
    """A batch does not continue its spool's chain. It is kept aside."""


async def take_in(connection: Connection, spool: bytes, owner: str, frames: bytes) -> int:
    """Commits `frames` of `spool`; gives the sequence up to which the spool is committed.

    A batch that was committed before is acknowledged again. Without frames, tells where the spool stands.

    Raises:
        NotTheOwner, BadBatch: see there. Nothing is committed.
    """
    try:
        async with connection.transaction():
            return await _take_in(connection, spool, owner, frames)
    except BadBatch as bad:
        await _quarantine(connection, spool, owner, frames, str(bad))
        raise


async def _take_in(connection: Connection, spool: bytes, owner: str, frames: bytes) -> int:
    sequence, link = await _lock_spool(connection, spool, owner)
    try:
        known = skip_frames(frames, sequence)
        if known is not None:
            length, last, last_link = known
            await _check_resent(connection, spool, last, last_link)
            frames = frames[length:]
        records, end, end_link = verify_frames(sequence, link, frames)
    except ValueError as error:
        raise BadBatch(str(error)) from error
    if records:
        await _check_ends(connection, spool, records)
        leaf = await append_leaves(connection, leaf_hashes(spool, owner, records))
        rows = [row(spool, leaf + index, owner, record) for index, record in enumerate(records)]
        try:
            await connection.copy_records_to_table("records", records=rows, columns=list(COLUMNS))
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError, OverflowError) as error:
            # A sound chain of records that contradict each other or say what no column holds: it would not go in later.
            raise BadBatch(f"the store does not take it: {error}") from error
        await connection.execute(
            "UPDATE spools SET sequence = $2, link = $3, last_seen = now() WHERE spool = $1", spool, end, end_link
        )
    return end


async def _check_ends(connection: Connection, spool: bytes, records: Sequence[Record]) -> None:
    """A decision has one end. No unique index says so: one over partitions would have to hold the time."""
    found = (record.fields.get("decision_sequence") for record in records if record.kind == "end")
    ends = [min(sequence, MAX_BIGINT) for sequence in found if isinstance(sequence, int)]
    query = "SELECT EXISTS (SELECT FROM records WHERE kind = 'end' AND spool = $1 AND decision_sequence = ANY($2))"
    if len(set(ends)) < len(ends) or await connection.fetchval(query, spool, ends):
        raise BadBatch("a decision has a second end")


async def _lock_spool(connection: Connection, spool: bytes, owner: str) -> tuple[int, bytes]:
    """Where `spool` stands, locked until the transaction ends."""
    await connection.execute(
        "INSERT INTO spools (spool, owner, sequence, link) VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING",
        spool,
        owner,
        first_link(),
    )
    found = await connection.fetchrow("SELECT owner, sequence, link FROM spools WHERE spool = $1 FOR UPDATE", spool)
    assert found is not None, "it was inserted above"
    if found["owner"] != owner:
        raise NotTheOwner(f"spool {spool.hex()} belongs to {found['owner']}; {owner} ships it")
    return found["sequence"], found["link"]


async def _check_resent(connection: Connection, spool: bytes, sequence: int, link: bytes) -> None:
    """What was committed before must come again as it was: its link tells of all before it."""
    stored = await connection.fetchval("SELECT link FROM records WHERE spool = $1 AND sequence = $2", spool, sequence)
    if stored != link:
        raise BadBatch(f"record {sequence} was shipped before with another content: the spool has forked")


async def _quarantine(connection: Connection, spool: bytes, owner: str, frames: bytes, reason: str) -> None:
    log.error("batch kept aside", spool=spool.hex(), owner=owner, reason=reason)
    await connection.execute(
        "INSERT INTO quarantine (spool, owner, reason, frames, frames_hash) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT DO NOTHING",
        spool,
        owner,
        reason,
        frames,
        hashlib.sha256(frames).digest(),
    )
