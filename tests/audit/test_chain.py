from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from support.starts import take_in

from peltast.audit import chain
from peltast.audit.chain import Finding, Verification, verify_store
from peltast.audit.columns import COLUMNS, row
from peltast.authz._engine import first_link, verify_frames

Spool = Any
Connection = asyncpg.Connection


async def test_an_empty_store_is_sound(auditor: Connection) -> None:
    verification = await verify_store(auditor)
    assert verification == Verification(0, 0, ())
    assert verification.sound


async def test_what_was_taken_in_is_sound_and_an_auditor_can_tell(
    collector: Connection, auditor: Connection, stored: Spool, other_spool: Spool, principal: str
) -> None:
    await take_in(collector, other_spool.id, principal, other_spool.frames())
    assert await verify_store(auditor) == Verification(2, 5, ())


async def test_a_spool_without_records_is_sound(
    collector: Connection, auditor: Connection, spool: Spool, principal: str
) -> None:
    await take_in(collector, spool.id, principal, b"")
    assert await verify_store(auditor) == Verification(1, 0, ())


TAMPERING = [
    pytest.param(
        "UPDATE records SET body = set_byte(body, length(body) - 1, 0) WHERE sequence = 3",
        Finding("", 3, "the record was altered: its link does not follow"),
        id="an altered body",
    ),
    pytest.param(
        "UPDATE records SET link = set_byte(link, 0, get_byte(link, 0) # 1) WHERE sequence = 2",
        Finding("", 2, "the record was altered: its link does not follow"),
        id="an altered link",
    ),
    pytest.param(
        "DELETE FROM records WHERE sequence = 3",
        Finding("", 3, "the record is missing; 4 follows"),
        id="a removed record",
    ),
    pytest.param(
        "DELETE FROM records WHERE sequence = 1",
        Finding("", 1, "the record is missing; 2 follows"),
        id="a removed beginning",
    ),
    pytest.param(
        "DELETE FROM records WHERE sequence = 4",
        Finding("", 4, "records up to 4 were committed; they end here"),
        id="a removed end",
    ),
    pytest.param(
        "DELETE FROM records WHERE sequence > 2",
        Finding("", 3, "records up to 4 were committed; they end here"),
        id="a cut tail",
    ),
    pytest.param(
        "DELETE FROM records", Finding("", 1, "records up to 4 were committed; they end here"), id="nothing left"
    ),
    pytest.param(
        "WITH swapped AS (SELECT body FROM records WHERE sequence = 2) "
        "UPDATE records SET body = swapped.body FROM swapped WHERE sequence = 3",
        Finding("", 3, "the record was altered: its link does not follow"),
        id="a repeated body",
    ),
    pytest.param(
        "UPDATE records SET sequence = CASE sequence WHEN 2 THEN 13 WHEN 3 THEN 12 END WHERE sequence IN (2, 3);"
        "UPDATE records SET sequence = sequence - 10 WHERE sequence > 10",
        Finding("", 2, "the record was altered: its link does not follow"),
        id="two records swapped",
    ),
    pytest.param(
        "INSERT INTO records (spool, sequence, leaf, owner, schema, time, time_ns, body, link) "
        "SELECT spool, 5, 4, owner, schema, time, time_ns, body, link FROM records WHERE sequence = 4",
        Finding("", 5, "the record was altered: its link does not follow"),
        id="an inserted record",
    ),
    pytest.param(
        "UPDATE spools SET sequence = 3",
        Finding("", 5, "records up to 3 were committed; they end here"),
        id="a place that was set back",
    ),
    pytest.param(
        "UPDATE spools SET link = set_byte(link, 0, get_byte(link, 0) # 1)",
        Finding("", 5, "records up to 4 were committed; they end here"),
        id="another last link",
    ),
]


@pytest.mark.parametrize(("statement", "expected"), TAMPERING)
async def test_tampering_is_found_where_it_was_done(
    owner: Connection, stored: Spool, statement: str, expected: Finding
) -> None:
    await owner.execute(statement)
    verification = await verify_store(owner)
    assert not verification.sound
    assert verification.findings == (Finding(stored.id.hex(), expected.sequence, expected.what),)


async def test_an_inserted_record_that_continues_the_chain_is_found_by_the_spools_place(
    owner: Connection, stored: Spool, principal: str
) -> None:
    stored.append(path="/never shipped")
    *_, last = verify_frames(0, first_link(), stored.frames())[0]
    rows = [row(stored.id, 4, principal, last)]
    await owner.copy_records_to_table("records", records=rows, columns=list(COLUMNS))
    expected = Finding(stored.id.hex(), 6, "records up to 4 were committed; they end here")
    assert (await verify_store(owner)).findings == (expected,)


async def test_one_bad_spool_does_not_hide_the_others(
    owner: Connection, collector: Connection, stored: Spool, other_spool: Spool, principal: str
) -> None:
    other_spool.append()
    await take_in(collector, other_spool.id, principal, other_spool.frames())
    await owner.execute("DELETE FROM records WHERE sequence = 2")
    verification = await verify_store(owner)
    assert {finding.spool for finding in verification.findings} == {stored.id.hex()} | {other_spool.id.hex()}


async def test_more_records_than_are_read_at_a_time_are_verified(
    monkeypatch: pytest.MonkeyPatch, auditor: Connection, stored: Spool
) -> None:
    monkeypatch.setattr(chain, "_ROWS_AT_A_TIME", 2)
    assert await verify_store(auditor) == Verification(1, 4, ())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("path", "'/forged'"),
        ("effect", "NULL"),
        ("owner", "'spiffe://forged/'"),
        ("time", "now()"),
        ("time_ns", "1"),
        ("kind", "'act'"),
        ("policy", "'bookshop/browse'"),
        ("schema", "2"),
        ("status", "200"),
    ],
)
async def test_an_altered_column_is_found(owner: Connection, stored: Spool, column: str, value: str) -> None:
    """Reports read the columns and not the bodies."""
    await owner.execute(f"UPDATE records SET {column} = {value} WHERE sequence = 3")
    [finding] = (await verify_store(owner)).findings
    assert finding.sequence == 3
    assert finding.what == f"the row was altered: {column} is not as in the record"


async def test_rows_of_values_that_do_not_fit_a_column_are_sound(
    auditor: Connection, collector: Connection, spool: Spool, principal: str
) -> None:
    spool.writer.append("decision", 2**64 - 1, {"path": b"/\xff\0", "rule": 2**64 - 1, "program": b"\0"})
    await take_in(collector, spool.id, principal, spool.frames())
    assert (await verify_store(auditor)).sound
