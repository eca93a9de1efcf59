"""Taking in one batch: it is checked, its rows copied and its spool's place advanced, in one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
import structlog

from peltast.audit.collector.keyring import Keyring
from peltast.audit.collector.leaves import append_leaves
from peltast.audit.columns import COLUMNS, MAX_BIGINT, row
from peltast.audit.protos.collector_pb2 import Batch
from peltast.authz._engine import Record, RecordKey, first_link, leaf_hashes, skip_frames, verify_frames

__all__ = ["BadBatch", "Collector", "NotTheOwner", "Report"]

MAX_GAP = 10_000_000
"""Records that a batch may leave out: more than a spool holds. Each costs a step of its key."""
MAX_REASON = 1000
"""Characters of an agent's reason that are kept."""

_NOT_TAKEN = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
)

log = structlog.get_logger()

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"

Report: TypeAlias = Callable[[str, str, str], None]
"""Takes the action, the object and the detail of something that an auditor is to know."""


class NotTheOwner(PermissionError):
    """A spool is shipped by another identity than the one that it belongs to."""


class BadBatch(ValueError):
    """A batch does not continue its spool's chain, or is not by its writer. It is kept aside."""


@dataclass(frozen=True)
class Gap:
    """Records of a spool that will never come; without a link nothing comes after them."""

    since: int
    until: int
    link: bytes | None
    reason: str


@dataclass(frozen=True)
class Place:
    """Where a spool stands, and of which start it is once its genesis came."""

    sequence: int
    link: bytes
    closed: bool
    statement: bytes | None
    start_index: int | None


@dataclass(frozen=True)
class Collector:
    """Takes in what agents ship."""

    keyring: Keyring
    report: Report

    async def take_in(self, connection: Connection, owner: str, batch: Batch) -> int:
        """Commits the frames of `batch`, shipped by `owner`; gives the sequence up to which its spool is committed.

        A batch that was committed before is acknowledged again. Without frames, tells where the spool stands.

        Raises:
            NotTheOwner, BadBatch: see there. Nothing is committed.
        """
        try:
            async with connection.transaction():
                end, gap, key = await _take_in(connection, self.keyring, owner, batch)
        except BadBatch as bad:
            if await _quarantine(connection, batch.spool, owner, batch.frames, str(bad)):
                self.report("spool.refuse", f"{batch.spool.hex()} {owner}", str(bad))
            raise
        if key is not None:
            self.keyring.keep(batch.spool, key)
        if gap is not None:
            self.report("spool.gap", f"{batch.spool.hex()} {owner}", f"from {gap.since} to {gap.until}: {gap.reason}")
        return end


async def _take_in(
    connection: Connection, keyring: Keyring, owner: str, batch: Batch
) -> tuple[int, Gap | None, RecordKey | None]:
    spool, frames = batch.spool, batch.frames
    place = await _lock_spool(connection, spool, owner)
    gap = await _take_gap(connection, spool, place, batch)
    sequence, link = (gap.until, gap.link) if gap and gap.link else (place.sequence, place.link)
    try:
        known = skip_frames(frames, sequence)
        if known is not None:
            length, last, last_link = known
            await _check_resent(connection, spool, last, last_link)
            frames = frames[length:]
        if not frames:
            return place.sequence, gap, None
        key = await _key_after(connection, keyring, spool, owner, place, sequence, frames)
        records, end, end_link = verify_frames(sequence, link, frames, key)
    except ValueError as error:
        raise BadBatch(str(error)) from error
    if records:
        _check_kinds(spool, place, records)
        await _check_ends(connection, spool, records)
        leaf = await append_leaves(connection, leaf_hashes(spool, owner, records))
        rows = [row(spool, leaf + index, owner, record) for index, record in enumerate(records)]
        try:
            await connection.copy_records_to_table("records", records=rows, columns=list(COLUMNS))
        except _NOT_TAKEN as error:
            # A sound chain of records that contradict each other or say what no column holds: it would not go in later.
            raise BadBatch(f"the store does not take it: {error}") from error
        closed = records[-1].kind == "close"
        await connection.execute(
            "UPDATE spools SET sequence = $2, link = $3, closed = $4, last_seen = now() WHERE spool = $1",
            *(spool, end, end_link, closed),
        )
    return end, gap, key


async def _take_gap(connection: Connection, spool: bytes, place: Place, batch: Batch) -> Gap | None:
    """The gap before the frames of `batch`, noted; none where there is none, or it is known."""
    since, reason = place.sequence + 1, batch.reason[:MAX_REASON]
    if not reason or (batch.frames and batch.from_sequence <= place.sequence):
        return None
    if batch.from_sequence > place.sequence + MAX_GAP or (batch.frames and len(batch.from_link) != len(place.link)):
        raise BadBatch(f"a gap from {since} to {batch.from_sequence} is none")
    gap = Gap(since, batch.from_sequence, batch.from_link, reason) if batch.frames else Gap(since, since, None, reason)
    query = (
        "INSERT INTO gaps (spool, since, until, link, reason) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT DO NOTHING RETURNING since"
    )
    noted = await connection.fetchval(query, spool, gap.since, gap.until, gap.link, gap.reason.replace("\0", ""))
    return None if noted is None else gap


async def _key_after(
    connection: Connection, keyring: Keyring, spool: bytes, owner: str, place: Place, sequence: int, frames: bytes
) -> RecordKey:
    """The key of the record after `sequence`, with which `frames` begin."""
    statement, index = place.statement, place.start_index
    if statement is None or index is None:
        if sequence > 0:
            raise BadBatch("the spool's genesis never came: nobody can tell whose records these are")
        statement, index = await _take_start(connection, keyring, spool, owner, frames)
    return keyring.take(spool, sequence, statement, index, owner)


async def _take_start(
    connection: Connection, keyring: Keyring, spool: bytes, owner: str, frames: bytes
) -> tuple[bytes, int]:
    """Notes the start that the genesis at the beginning of `frames` names: its statement, and the spool's number."""
    [genesis, *_], _, _ = verify_frames(0, first_link(), frames)
    signed, index = genesis.fields.get("start"), genesis.fields.get("start_index")
    if genesis.kind != "genesis" or not isinstance(signed, bytes) or not isinstance(index, int):
        raise BadBatch("a spool begins with a genesis record that names its start")
    statement = keyring.check(signed, owner)
    await connection.execute(
        "INSERT INTO starts (start, owner, previous, statement) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        *(statement.hash, owner, statement.previous or None, signed),
    )
    try:
        await connection.execute(
            "UPDATE spools SET start = $2, start_index = $3 WHERE spool = $1", spool, statement.hash, index
        )
    except asyncpg.UniqueViolationError as error:
        raise BadBatch(f"spool {index} of start {statement.hash.hex()} is another one") from error
    except (asyncpg.DataError, OverflowError) as error:
        raise BadBatch(f"a spool cannot be number {index} of its start") from error
    return signed, index


def _check_kinds(spool: bytes, place: Place, records: Sequence[Record]) -> None:
    """A spool begins with its genesis, once, and nothing follows its close."""
    if place.closed or any(record.kind == "close" for record in records[:-1]):
        raise BadBatch("a record follows the spool's close")
    for record in records:
        if (record.kind == "genesis") != (record.sequence == 1):
            raise BadBatch(f"record {record.sequence}: a spool has one genesis record, its first")
        if record.sequence == 1 and record.fields.get("spool_id") != spool:
            raise BadBatch("the genesis record is another spool's")


async def _check_ends(connection: Connection, spool: bytes, records: Sequence[Record]) -> None:
    """A decision has one end. No unique index says so: one over partitions would have to hold the time."""
    found = (record.fields.get("decision_sequence") for record in records if record.kind == "end")
    ends = [min(sequence, MAX_BIGINT) for sequence in found if isinstance(sequence, int)]
    query = "SELECT EXISTS (SELECT FROM records WHERE kind = 'end' AND spool = $1 AND decision_sequence = ANY($2))"
    if len(set(ends)) < len(ends) or await connection.fetchval(query, spool, ends):
        raise BadBatch("a decision has a second end")


async def _lock_spool(connection: Connection, spool: bytes, owner: str) -> Place:
    """Where `spool` stands, locked until the transaction ends."""
    await connection.execute(
        "INSERT INTO spools (spool, owner, sequence, link) VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING",
        spool,
        owner,
        first_link(),
    )
    found = await connection.fetchrow(
        "SELECT spools.owner, sequence, link, closed, statement, start_index "
        "FROM spools LEFT JOIN starts USING (start) WHERE spool = $1 FOR UPDATE OF spools",
        spool,
    )
    assert found is not None, "it was inserted above"
    if found["owner"] != owner:
        raise NotTheOwner(f"spool {spool.hex()} belongs to {found['owner']}; {owner} ships it")
    return Place(found["sequence"], found["link"], found["closed"], found["statement"], found["start_index"])


async def _check_resent(connection: Connection, spool: bytes, sequence: int, link: bytes) -> None:
    """What was committed before must come again as it was: its link tells of all before it.

    Of records that retention dropped only the last link of each run is known.
    """
    known = await connection.fetch(
        "SELECT link FROM records WHERE spool = $1 AND sequence = $2 UNION ALL "
        "SELECT CASE until WHEN $2 THEN link END FROM dropped_records WHERE spool = $1 AND $2 BETWEEN since AND until",
        *(spool, sequence),
    )
    if not known or known[0]["link"] not in (None, link):
        raise BadBatch(f"record {sequence} was shipped before with another content: the spool has forked")


async def _quarantine(connection: Connection, spool: bytes, owner: str, frames: bytes, reason: str) -> bool:
    """Keeps a batch aside; tells whether it was not known."""
    log.error("batch kept aside", spool=spool.hex(), owner=owner, reason=reason)
    done = await connection.execute(
        "INSERT INTO quarantine (spool, owner, reason, frames, frames_hash) VALUES ($1, $2, $3, $4, $5) "
        "ON CONFLICT DO NOTHING",
        spool,
        owner,
        reason,
        frames,
        hashlib.sha256(frames).digest(),
    )
    return done == "INSERT 0 1"
