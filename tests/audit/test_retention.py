"""What is dropped when its time is over, what is not, and that the rest still verifies."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.starts import take_in
from support.store import SIGNER, partitions, sign_as_collector
from typer.testing import CliRunner

from peltast.audit.chain import verify_store
from peltast.audit.collector.collect import BadBatch
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.holds import Hold, InvalidHold, add_hold, holds, remove_hold
from peltast.audit.store.partitions import ensure_partitions
from peltast.audit.store.retention import Day, retain
from peltast.authz._engine import first_link, skip_frames, verify_frames
from peltast.cli.main import app

Connection = asyncpg.Connection

DAY_NS = 86_400 * 10**9
TILE = 256


def day(ago: int) -> date:
    return datetime.now(UTC).date() - timedelta(ago)


@pytest.fixture
async def old(unpartitioned: Connection, collector: Connection, spool: Any, principal: str) -> Connection:
    """Two records in each of the days 10, 9 and 8 ago, and three today: leaves 0 to 8, all of one spool."""
    await ensure_partitions(collector)
    for ago in (10, 9, 8):
        await unpartitioned.execute("SELECT make_partition($1)", day(ago))
    first = len(spool.frames())
    for ago in (10, 9, 8, 0):
        spool.clock = time.time_ns() - ago * DAY_NS
        for number in range(2):
            spool.append(path=f"/{ago}/{number}")
    frames = spool.frames()
    # The spool's own first record is of another day than the rest (see START_NS): it is stored with them.
    assert await take_in(collector, spool.id, principal, frames[:first]) == 1
    await take_in(collector, spool.id, principal, frames[first:])
    return unpartitioned


async def sign(owner: Connection, size: int) -> None:
    await owner.execute("INSERT INTO checkpoints (size, root, note) VALUES ($1, $2, 'a note')", size, bytes(32))


async def tile(owner: Connection, number: int) -> None:
    await owner.execute("INSERT INTO tiles (level, number, hashes) VALUES (0, $1, $2)", number, bytes(TILE * 32))


async def covered(owner: Connection) -> None:
    await sign(owner, TILE)
    await tile(owner, 0)


async def fill(collector: Connection, spool: Any, number: int) -> None:
    """Takes in `number` more records of today."""
    known = len(spool.frames())
    spool.clock = time.time_ns()
    for _ in range(number):
        spool.append(path="/more")
    await take_in(collector, spool.id, spool.owner, spool.frames()[known:])


@pytest.fixture
async def signed(postgres: EmbeddedPostgres, old: Connection, collector: Connection, spool: Any) -> Connection:
    """The same with more records, so that their leaves are a whole tile, which is signed."""
    await fill(collector, spool, TILE - 9)
    await sign_as_collector(postgres)
    return old


async def test_a_day_whose_time_is_over_is_dropped_with_its_partition(old: Connection) -> None:
    await covered(old)
    assert await retain(old, 8) == [Day(day(10), 2, 1, 2, None), Day(day(9), 2, 3, 4, None)]
    assert not {f"records_{day(10):%Y%m%d}", f"records_{day(9):%Y%m%d}"} & set(await partitions(old))
    assert [row["path"] for row in await old.fetch("SELECT path FROM records ORDER BY leaf")][1:] == [
        "/8/0",
        "/8/1",
        "/0/0",
        "/0/1",
    ]


async def test_what_was_dropped_is_written_down_and_hashes_and_checkpoints_stay(old: Connection, spool: Any) -> None:
    await covered(old)
    records, _, _ = verify_frames(0, first_link(), spool.frames())
    await retain(old, 8)
    dropped = await old.fetch("SELECT * FROM dropped_partitions ORDER BY day")
    assert [tuple(row) for row in dropped] == [
        (day(10), dropped[0]["dropped"], SUPERUSER, 2, 1, 2),
        (day(9), dropped[1]["dropped"], SUPERUSER, 2, 3, 4),
    ]
    runs = await old.fetch("SELECT * FROM dropped_records ORDER BY since")
    assert [tuple(run) for run in runs] == [
        (spool.id, 2, 3, 2, records[2].link),
        (spool.id, 4, 5, 4, records[4].link),
    ]
    assert await old.fetchval("SELECT count(*) FROM tiles") == 1
    assert await old.fetchval("SELECT count(*) FROM checkpoints") == 1


KEPT = [
    pytest.param({}, "no checkpoint covers it yet", id="no checkpoint"),
    pytest.param({"size": 2}, "no checkpoint covers it yet", id="a checkpoint before its newest record"),
    pytest.param({"size": 3}, "its leaves are not all in whole tiles yet", id="no tile"),
    pytest.param({"size": 3, "tiles": [1]}, "its leaves are not all in whole tiles yet", id="another tile"),
    pytest.param({"size": 3, "tiles": [0], "hold": (10, 10)}, "held: case 7", id="a hold on the day"),
    pytest.param({"size": 3, "tiles": [0], "hold": (20, 10)}, "held: case 7", id="a hold that ends with it"),
    pytest.param({"size": 3, "tiles": [0], "hold": (10, 1)}, "held: case 7", id="a hold that begins with it"),
    pytest.param({"size": 3, "tiles": [0], "hold": (11, 11)}, None, id="a hold on the day before"),
    pytest.param({"size": 3, "tiles": [0], "hold": (9, 9)}, None, id="a hold on the day after"),
    pytest.param({"size": 3, "tiles": [0]}, None, id="nothing against it"),
]


@pytest.mark.parametrize(("given", "kept"), KEPT)
async def test_a_day_stays_while_something_is_against_it(old: Connection, given: Any, kept: str | None) -> None:
    """The day has leaves 1 and 2."""
    if "size" in given:
        await sign(old, given["size"])
    for number in given.get("tiles", []):
        await tile(old, number)
    if "hold" in given:
        since, until = given["hold"]
        await add_hold(old, Hold("case 7", day(since), day(until), "Smith v. Jones"))
    assert await retain(old, 9, dry_run=True) == [Day(day(10), 2, 1, 2, kept)]
    assert await old.fetchval("SELECT count(*) FROM records") == 9, "a dry run drops nothing"
    assert await retain(old, 9) == [Day(day(10), 2, 1, 2, kept)]
    assert await old.fetchval("SELECT count(*) FROM records") == (9 if kept else 7)


async def test_a_day_is_dropped_only_once_all_of_its_tiles_are_whole(
    postgres: EmbeddedPostgres, signed: Connection, collector: Connection, spool: Any, principal: str
) -> None:
    """Late records of it come, far behind in the tree."""
    known = len(spool.frames())
    spool.clock = time.time_ns() - 10 * DAY_NS
    spool.append(path="/late")
    await take_in(collector, spool.id, principal, spool.frames()[known:])
    assert (await retain(signed, 9))[0].kept == "no checkpoint covers it yet"
    await sign_as_collector(postgres)
    assert (await retain(signed, 9))[0].kept == "its leaves are not all in whole tiles yet"
    await fill(collector, spool, TILE - 1)
    assert await retain(signed, 9) == [Day(day(10), 3, 1, TILE, None)]
    assert (await verify_store(signed, SIGNER.verifier_key)).findings == ()


async def test_an_empty_day_is_dropped(unpartitioned: Connection) -> None:
    await unpartitioned.execute("SELECT make_partition($1)", day(30))
    assert await retain(unpartitioned, 9) == [Day(day(30), 0, None, None, None)]
    assert await partitions(unpartitioned) == []


async def test_the_chain_verifies_when_days_were_dropped(signed: Connection) -> None:
    await retain(signed, 8)
    verification = await verify_store(signed, SIGNER.verifier_key)
    assert verification.findings == ()
    assert (verification.records, verification.dropped) == (TILE - 4, 4)


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("DELETE FROM records WHERE path = '/8/0'", "the record is missing; 7 follows"),
        ("DELETE FROM records WHERE path LIKE '/0/%'", "the record is missing; 10 follows"),
        ("DELETE FROM records WHERE path = '/more'", f"records up to {TILE} were committed"),
        ("DELETE FROM dropped_records WHERE since = 4", "the record is missing; 6 follows"),
        ("UPDATE dropped_records SET link = spool || spool WHERE since = 4", "its link does not follow"),
        ("UPDATE dropped_records SET until = 6 WHERE since = 4", "the record is out of its order: 7 is due"),
        ("UPDATE dropped_records SET since = 5 WHERE since = 4", "the record is missing; 6 follows"),
        ("DELETE FROM dropped_partitions WHERE first_leaf = 3", "the record of leaf 3 is missing"),
    ],
)
async def test_what_retention_did_not_drop_is_still_missed(signed: Connection, tampering: str, found: str) -> None:
    await retain(signed, 8)
    await signed.execute(tampering)
    findings = (await verify_store(signed, SIGNER.verifier_key)).findings
    assert [finding.what for finding in findings if found in finding.what]


async def test_a_clock_that_went_back_leaves_runs_that_verify(
    postgres: EmbeddedPostgres, unpartitioned: Connection, collector: Connection, spool: Any, principal: str
) -> None:
    """Records of two days by turns, of which one is dropped."""
    for ago in (10, 5):
        await unpartitioned.execute("SELECT make_partition($1)", day(ago))
    for ago in (10, 5, 5, 10, 10, 5, 10):
        spool.clock = time.time_ns() - ago * DAY_NS
        spool.append(path="/")
    await take_in(collector, spool.id, principal, spool.frames())
    await fill(collector, spool, TILE - 8)
    await sign_as_collector(postgres)
    assert [each.records for each in await retain(unpartitioned, 7)] == [4]
    runs = await unpartitioned.fetch("SELECT since, until FROM dropped_records ORDER BY since")
    assert [tuple(run) for run in runs] == [(2, 2), (5, 6), (8, 8)]
    assert (await verify_store(unpartitioned, SIGNER.verifier_key)).sound


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(3, id="the last of what was dropped"),
        pytest.param(4, id="one whose link was dropped"),
        pytest.param(7, id="one that is kept"),
        pytest.param(TILE, id="the last of all"),
    ],
)
async def test_what_was_dropped_is_known_when_it_is_sent_again(
    signed: Connection, collector: Connection, spool: Any, principal: str, last: int
) -> None:
    """A sidecar that heard of no acknowledgement was away for days. (Records 2 and 3 are one run, 4 and 5 another.)"""
    frames = spool.frames()
    await retain(signed, 8)
    known = skip_frames(frames, last)
    assert known is not None
    assert await take_in(collector, spool.id, principal, frames[: known[0]]) == TILE
    await fill(collector, spool, 1)
    assert await signed.fetchval("SELECT count(*) FROM quarantine") == 0


async def test_another_record_than_was_dropped_is_a_fork(
    signed: Connection, collector: Connection, spool: Any, other_spool: Any, principal: str
) -> None:
    await retain(signed, 8)
    other_spool.append(path="/forged")
    other_spool.append(path="/forged")
    with pytest.raises(BadBatch, match="record 3 was shipped before with another content: the spool has forked"):
        await take_in(collector, spool.id, principal, other_spool.frames())


async def test_records_of_a_clock_that_is_far_off_are_not_dropped(old: Connection, spool: Any) -> None:
    """Else whoever sets a clock back had its records dropped at once."""
    await covered(old)
    await old.execute("UPDATE records SET time = '1970-01-01' WHERE path = '/0/0'")
    await retain(old, 2)
    assert await old.fetchval("SELECT count(*) FROM records WHERE path = '/0/0'") == 1


@pytest.mark.parametrize("days", [-1, 0, 1])
async def test_days_for_which_records_may_still_come_are_never_dropped(old: Connection, days: int) -> None:
    with pytest.raises(ValueError, match="at least 2 are kept"):
        await retain(old, days)


async def test_retention_waits_for_a_hold_that_is_being_put_in_force(
    postgres: EmbeddedPostgres, old: Connection
) -> None:
    """Either the hold is in force before retention looks, or the day is gone when the hold is said to be in force."""
    await covered(old)
    other = await asyncpg.connect(postgres.url(SUPERUSER))
    try:
        transaction = other.transaction()
        await transaction.start()
        await add_hold(other, Hold("case 7", day(10), day(10), "Smith v. Jones"))
        retaining = asyncio.create_task(retain(old, 9))
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with asyncio.timeout(10):
            while not await other.fetchval(waiting):  # noqa: ASYNC110 - locks set no Event
                await asyncio.sleep(0.01)
        await transaction.commit()
        assert [each.kept for each in await retaining] == ["held: case 7"]
    finally:
        await other.close()


# Holds ----------------------------------------------------------------------------------------------------------------


async def test_holds_are_listed_until_they_are_removed(owner: Connection) -> None:
    hold = Hold("case 7", day(10), day(9), "Smith v. Jones")
    await add_hold(owner, hold)
    assert await holds(owner) == [hold]
    with pytest.raises(InvalidHold, match="there is a hold 'case 7' already"):
        await add_hold(owner, hold)
    await remove_hold(owner, "case 7")
    assert await holds(owner) == []
    with pytest.raises(InvalidHold, match="there is no hold 'case 7'"):
        await remove_hold(owner, "case 7")


@pytest.mark.parametrize(
    ("hold", "said"),
    [
        (("", 2, 1, "why"), "name: 0 characters"),
        (("  ", 2, 1, "why"), "name: 2 characters"),
        (("a\0b", 2, 1, "why"), "name: 3 characters"),
        (("n" * 201, 2, 1, "why"), "name: 201 characters; 1 to 200"),
        (("case", 2, 1, ""), "reason: 0 characters"),
        (("case", 1, 2, "why"), "before it begins"),
    ],
)
def test_a_hold_that_cannot_be_is_refused(hold: Any, said: str) -> None:
    name, since, until, reason = hold
    with pytest.raises(InvalidHold, match=said):
        Hold(name, day(since), day(until), reason)


# Commands -------------------------------------------------------------------------------------------------------------


def peltast(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": "200"})
    return ended.exit_code, ended.output


@pytest.fixture
def store(postgres: EmbeddedPostgres, tmp_path: Path) -> tuple[str, ...]:
    return ("--state", str(tmp_path), "--database", postgres.url(SUPERUSER))


async def run(*arguments: str) -> tuple[int, str]:
    return await asyncio.to_thread(peltast, *arguments)


async def test_holding_and_retaining_by_commands(old: Connection, store: tuple[str, ...]) -> None:
    await covered(old)
    days = ("--since", str(day(10)), "--until", str(day(10)), "--reason", "[Smith] v. Jones")
    code, said = await run("hold", "add", "case 7", *days, *store)
    assert (code, f"Held: case 7, {day(10)} to {day(10)}" in said) == (0, True)
    assert "Done, but not on record: hold.add" in said, "there is no control plane"
    assert "[Smith] v. Jones" in (await run("hold", "list", *store))[1]
    assert json.loads((await run("hold", "list", "--output", "json", *store))[1]) == [
        {"name": "case 7", "since": str(day(10)), "until": str(day(10)), "reason": "[Smith] v. Jones"}
    ]
    assert "would be dropped" in (await run("retain", "--days", "8", "--dry-run", *store))[1]
    code, said = await run("retain", "--days", "8", *store)
    assert code == 0
    assert "kept: held: case 7" in said
    assert await old.fetchval("SELECT array_agg(day) FROM dropped_partitions") == [day(9)]
    await run("hold", "remove", "case 7", *store)
    found = json.loads((await run("retain", "--days", "8", "--dry-run", "--output", "json", *store))[1])
    assert found == [{"day": str(day(10)), "records": 2, "first_leaf": 1, "last_leaf": 2, "kept": None}]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("hold", "remove", "nothing"), 1, "there is no hold 'nothing'"),
        (("hold", "add", "x", "--since", "2026-02-30", "--until", "2026-03-01", "--reason", "y"), 2, "2026-02-30"),
        (("hold", "add", "x", "--since", "2026-03-02", "--until", "2026-03-01", "--reason", "y"), 1, "before it begin"),
        (("retain", "--days", "1"), 2, "greater than or equal to 2"),
    ],
)
async def test_what_cannot_be_done_is_said(
    owner: Connection, store: tuple[str, ...], arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, output = await run(*arguments, *store)
    assert (found, said in output) == (code, True), output


async def test_without_a_store_it_is_said_where_it_was_looked_for(tmp_path: Path) -> None:
    code, output = await run("hold", "list", "--state", str(tmp_path))
    assert code == 1
    assert "Is `peltast up` running with this state?" in output
