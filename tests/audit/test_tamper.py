"""What somebody with every right over the database, or over published checkpoints, might do: each is found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.starts import take_in, trust

from peltast.audit import chain
from peltast.audit.chain import Finding, Gap, Verification, verify_store
from peltast.audit.checkpoint import Signer
from peltast.audit.collector.checkpoints import Publisher, sign_tree
from peltast.audit.collector.leaves import append_leaves
from peltast.audit.columns import COLUMNS, row
from peltast.audit.signed import published_notes
from peltast.audit.sinks import Folder
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import COLLECTOR_ROLE
from peltast.audit.writers import Trust
from peltast.authz._engine import first_link, leaf_hash, next_link, read_record, verify_frames

Spool = Any
Connection = asyncpg.Connection

SIGNER = Signer("peltast.dev/audit/mesh.example", Ed25519PrivateKey.from_private_bytes(b"k" * 32))
OTHER_SIGNER = Signer("peltast.dev/audit/mesh.example", Ed25519PrivateKey.from_private_bytes(b"x" * 32))


@dataclass
class Log:
    """A store of two spools (`first` of 4 records, `second` of 600), signed at 4 leaves, at 304 and at the end."""

    owner: Connection
    auditor: Connection
    first: Spool
    second: Spool
    folder: Path

    async def verify(self, known: Trust | None = None) -> Verification:
        published = await published_notes({"folder": Folder(self.folder)})
        return await verify_store(self.auditor, SIGNER.verifier_key, published, known or trust())

    async def verify_without_keys(self) -> Verification:
        return await self.verify(Trust(trust().roots))

    def name(self, finding: Finding) -> str | None:
        names = {self.first.id.hex(): "first", self.second.id.hex(): "second"}
        return f"{names[finding.spool]}:{finding.sequence}" if finding.spool in names else None


@pytest.fixture
async def log(
    postgres: EmbeddedPostgres,
    owner: Connection,
    auditor: Connection,
    collector: Connection,
    stored: Spool,
    other_spool: Spool,
    principal: str,
    tmp_path: Path,
) -> Log:
    folder = tmp_path / "checkpoints"
    async with asyncpg.create_pool(postgres.url(COLLECTOR_ROLE), min_size=0, max_size=1) as pool:
        await sign_tree(pool, SIGNER)
        for records in (299, 300):
            for _ in range(records):
                other_spool.append(path="/x", effect="allow", method="GET", rule=3)
            await take_in(collector, other_spool.id, principal, other_spool.frames())
            await sign_tree(pool, SIGNER)
        await Publisher("folder", Folder(folder), tmp_path / "place").catch_up(pool)
    await owner.execute("UPDATE checkpoints SET time = time - interval '1 hour'")
    return Log(owner, auditor, stored, other_spool, folder)


async def test_an_empty_store_is_sound(auditor: Connection) -> None:
    verification = await verify_store(auditor, SIGNER.verifier_key)
    assert verification == Verification(0, 0, 0, 0, (), (), (), (), 0)
    assert verification.sound


async def test_what_was_taken_in_is_sound_and_an_auditor_can_tell(log: Log) -> None:
    verification = await log.verify()
    assert verification.findings == ()
    assert (verification.spools, verification.records, verification.checkpoints) == (2, 604, 6)
    assert {spool.spool for spool in verification.open} == {log.first.id.hex(), log.second.id.hex()}


async def test_a_spool_without_records_is_sound(
    collector: Connection, auditor: Connection, spool: Spool, principal: str
) -> None:
    await take_in(collector, spool.id, principal, b"")
    assert (await verify_store(auditor)).sound


FIRST, SECOND = (f"(SELECT spool FROM records WHERE leaf = {leaf})" for leaf in (0, 4))

ROWS = [
    pytest.param(
        f"UPDATE records SET body = set_byte(body, length(body) - 1, 0) WHERE spool = {FIRST} AND sequence = 3",
        ("first:3", "the record was altered: its link does not follow"),
        id="an altered body",
    ),
    pytest.param(
        f"UPDATE records SET body = substr(body, 1, 7) WHERE spool = {FIRST} AND sequence = 3",
        ("first:3", "its body is no record"),
        id="a body cut short",
    ),
    pytest.param(
        f"UPDATE records SET link = set_byte(link, 0, get_byte(link, 0) # 1) WHERE spool = {FIRST} AND sequence = 2",
        ("first:2", "the record was altered: its link does not follow"),
        id="an altered link",
    ),
    pytest.param(
        f"UPDATE records SET link = '' WHERE spool = {FIRST} AND sequence = 2",
        ("first:2", "the record was altered: its link does not follow"),
        id="an empty link",
    ),
    pytest.param(
        f"DELETE FROM records WHERE spool = {FIRST} AND sequence = 3",
        ("first:3", "the record is missing; 4 follows"),
        id="a removed record",
    ),
    pytest.param(
        f"DELETE FROM records WHERE spool = {FIRST} AND sequence = 1",
        ("first:1", "the record is missing; 2 follows"),
        id="a removed beginning",
    ),
    pytest.param(
        f"DELETE FROM records WHERE spool = {FIRST} AND sequence = 4",
        ("first:4", "records up to 4 were committed; they end here"),
        id="a removed end",
    ),
    pytest.param(
        f"DELETE FROM records WHERE spool = {SECOND} AND sequence > 400",
        ("second:401", "records up to 600 were committed; they end here"),
        id="a cut tail",
    ),
    pytest.param(
        "DELETE FROM records", ("first:1", "records up to 4 were committed; they end here"), id="nothing left"
    ),
    pytest.param(
        f"WITH swapped AS (SELECT body FROM records WHERE spool = {FIRST} AND sequence = 2) "
        f"UPDATE records SET body = swapped.body FROM swapped WHERE spool = {FIRST} AND sequence = 3",
        ("first:3", "the record was altered: its link does not follow"),
        id="a repeated body",
    ),
    pytest.param(
        "UPDATE records SET leaf = 1 - (leaf - 2) WHERE leaf IN (1, 2)",
        ("first:2", "the record is missing; 3 follows"),
        id="two records swapped within a spool",
    ),
    pytest.param(
        "UPDATE records SET leaf = 4 - (leaf - 3) WHERE leaf IN (3, 4)",
        ("second:1", "the tree has another record here"),
        id="two records of two spools swapped",
    ),
    pytest.param(
        "UPDATE records SET leaf = -5 WHERE leaf = 600",
        ("second:597", "a leaf of another record, or one beyond"),
        id="a record before the tree's beginning",
    ),
    pytest.param(
        "UPDATE records SET leaf = 4611686018427387904 WHERE leaf = 603",
        ("second:600", "a leaf of another record, or one beyond"),
        id="a record beyond the tree's end",
    ),
    pytest.param(
        "INSERT INTO records (spool, sequence, leaf, owner, schema, time, time_ns, body, link) "
        "SELECT spool, sequence, leaf, owner, schema, time + '1 s', time_ns, body, link FROM records WHERE leaf = 2",
        ("first:3", "the record is out of its order: 4 is due"),
        id="a record twice",
    ),
    pytest.param(
        "INSERT INTO records (spool, sequence, leaf, owner, schema, time, time_ns, body, link) "
        "SELECT 'another', 1, 604, owner, schema, time, time_ns, body, link FROM records WHERE leaf = 0",
        (None, "the spool has records, and no place where it stands"),
        id="a spool out of nowhere",
    ),
    pytest.param(
        f"DELETE FROM spools WHERE spool = {FIRST}; DELETE FROM records WHERE leaf < 4",
        (None, "the record of leaf 0 is missing"),
        id="a whole spool with its cursor",
    ),
    pytest.param(
        f"UPDATE spools SET sequence = 3 WHERE spool = {FIRST}",
        ("first:5", "records up to 3 were committed; they end here"),
        id="a cursor that was set back",
    ),
    pytest.param(
        f"UPDATE spools SET link = set_byte(link, 0, get_byte(link, 0) # 1) WHERE spool = {FIRST}",
        ("first:5", "records up to 4 were committed; they end here"),
        id="a cursor with another link",
    ),
    pytest.param(
        f"UPDATE spools SET owner = 'spiffe://forged/' WHERE spool = {FIRST}",
        ("first:1", "the row was altered: owner"),
        id="a cursor of another owner",
    ),
    pytest.param(
        "UPDATE spools SET owner = 'spiffe://forged/'; UPDATE records SET owner = 'spiffe://forged/'",
        ("first:1", "the tree has another record here"),
        id="another owner everywhere",
    ),
    pytest.param(
        "DELETE FROM spools",
        ("first:1", "the spool has records, and no place where it stands"),
        id="no cursors",
    ),
    pytest.param(
        f"INSERT INTO gaps (spool, since, until, link, reason) SELECT spool, 3, 3, link, 'lost' FROM records "
        f"WHERE spool = {FIRST} AND sequence = 3; DELETE FROM records WHERE spool = {FIRST} AND sequence = 3",
        (None, "the record of leaf 2 is missing"),
        id="a record made a gap",
    ),
]

TREE = [
    pytest.param(
        "UPDATE tiles SET hashes = set_byte(hashes, 40, get_byte(hashes, 40) # 1) WHERE number = 0",
        ("first:2", "the record or the tile was altered"),
        id="an altered tile",
    ),
    pytest.param("DELETE FROM tiles WHERE number = 1", ("second:253", "tile 1 of level 0 is missing"), id="no tile"),
    pytest.param(
        "UPDATE tiles SET number = 1 - (number - 5) WHERE number = 1", ("second:253", "tile 1"), id="a tile moved"
    ),
    pytest.param(
        "INSERT INTO tiles SELECT 0, 2, hashes FROM tiles WHERE number = 0",
        (None, "tile 2 of level 0 is beyond the tree's end"),
        id="a tile too many",
    ),
    pytest.param(
        "INSERT INTO tiles SELECT 1, 0, hashes FROM tiles WHERE number = 0",
        (None, "tile 0 of level 1 is beyond the tree's end"),
        id="a tile of a higher level",
    ),
    pytest.param(
        "UPDATE tree SET frontier = set_byte(frontier, 0, get_byte(frontier, 0) # 1)",
        (None, "the tree's frontier was altered"),
        id="an altered frontier",
    ),
    pytest.param(
        "UPDATE tree SET tail = set_byte(tail, 0, get_byte(tail, 0) # 1)",
        ("second:509", "the record or the tile was altered"),
        id="an altered tail",
    ),
    pytest.param("UPDATE tree SET tail = ''", ("second:509", "the record or the tile was altered"), id="no tail"),
    pytest.param(
        "UPDATE tree SET size = 603", ("second:600", "a leaf of another record, or one beyond"), id="a smaller tree"
    ),
    pytest.param(
        "UPDATE tree SET size = 4611686018427387904", (None, "the newest records are missing"), id="a larger tree"
    ),
    pytest.param(
        "UPDATE tree SET size = 0, frontier = '', tail = ''", ("first:1", "beyond the tree's end"), id="no tree"
    ),
]

CHECKPOINTS = [
    pytest.param(
        "DELETE FROM checkpoints WHERE size = 604",
        (None, "the store has not the checkpoint of size 604, which folder has"),
        id="the newest removed",
    ),
    pytest.param("DELETE FROM checkpoints", (None, "the store has not the checkpoint of size 4"), id="all removed"),
    pytest.param(
        "UPDATE checkpoints SET root = sha256(root) WHERE size = 304",
        (None, "the store's checkpoint of size 304 has another size or hash than its note"),
        id="an altered hash",
    ),
    pytest.param(
        "UPDATE checkpoints SET note = replace(note, E'\\n304\\n', E'\\n305\\n') WHERE size = 304",
        (None, "the checkpoint of size 304 is forged"),
        id="an altered note",
    ),
    pytest.param(
        "UPDATE checkpoints SET note = '' WHERE size = 304",
        (None, "the checkpoint of size 304 is forged"),
        id="an empty note",
    ),
    pytest.param(
        "INSERT INTO checkpoints SELECT 700, sha256(root), time, note FROM checkpoints WHERE size = 304",
        (None, "the store's checkpoint of size 700 has another size or hash than its note"),
        id="one repeated under another size",
    ),
]


def found(log: Log, verification: Verification) -> list[tuple[str | None, str]]:
    return [(log.name(finding), finding.what) for finding in verification.findings]


@pytest.mark.parametrize(("statement", "expected"), [*ROWS, *TREE, *CHECKPOINTS])
async def test_tampering_in_the_store_is_found_and_the_record_named(
    log: Log, statement: str, expected: tuple[str | None, str]
) -> None:
    await log.owner.execute(statement)
    verification = await log.verify()
    record, what = expected
    assert any(name == record and what in told for name, told in found(log, verification)), found(log, verification)


def remove(index: int) -> Callable[[Path], object]:
    return lambda folder: sorted(folder.iterdir())[index].unlink()


def rewrite(old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = sorted(folder.iterdir())[1]
        file.write_text(file.read_text().replace(old, new))

    return change


FILES = [
    pytest.param(remove(0), "folder has not the checkpoint of size 4, which the store has", id="the first removed"),
    pytest.param(remove(-1), "folder has not the checkpoint of size 604, which the store has", id="the newest removed"),
    pytest.param(rewrite("\n304\n", "\n305\n"), "is forged", id="an altered one"),
    pytest.param(rewrite("— ", "- "), "is forged", id="one without a signature"),
    pytest.param(
        lambda folder: (folder / "9.checkpoint").write_text(OTHER_SIGNER.sign(304, b"r" * 32)),
        "9.checkpoint is forged",
        id="one by another key",
    ),
    pytest.param(
        lambda folder: (folder / "9.checkpoint").write_text(SIGNER.sign(304, b"r" * 32)),
        "two trees of size 304 were signed: the store's, and that of folder",
        id="one of another tree",
    ),
    pytest.param(
        lambda folder: (folder / "9.checkpoint").write_text(SIGNER.sign(605, b"r" * 32)),
        "the newest records are missing: there are 604, and the checkpoint of size 605 (folder) vouches for more",
        id="one of a larger tree",
    ),
    pytest.param(lambda folder: (folder / "9.checkpoint").write_bytes(b"\xff" * 9), "is forged", id="one of bad bytes"),
]


@pytest.mark.parametrize(("change", "expected"), FILES)
async def test_tampering_with_published_checkpoints_is_found(
    log: Log, change: Callable[[Path], object], expected: str
) -> None:
    change(log.folder)
    told = [what for _, what in found(log, await log.verify())]
    assert any(expected in what for what in told), told


async def test_a_checkpoint_that_is_not_published_yet_is_no_finding(log: Log) -> None:
    await log.owner.execute("UPDATE checkpoints SET time = now() WHERE size = 604")
    await asyncio.to_thread(remove(-1), log.folder)
    assert (await log.verify()).findings == ()


# Whoever knows how it works -------------------------------------------------------------------------------------------


async def forge(log: Log, kept: int) -> None:
    """Puts another record in the place of that of leaf 2, and computes anew everything that needs no key.

    Of the newest, `kept` records stay.
    """
    rows = await log.owner.fetch("SELECT spool, sequence, leaf, owner, body, link FROM records ORDER BY leaf")
    links: dict[bytes, bytes] = {}
    forged, leaves = [], []
    for stored in rows[:kept]:
        body = stored["body"].replace(b"deny", b"lies") if stored["leaf"] == 2 else stored["body"]
        link = next_link(links.get(stored["spool"], first_link()), body)
        links[stored["spool"]] = link
        forged.append(row(stored["spool"], stored["leaf"], stored["owner"], read_record(body, link)))
        leaves.append(leaf_hash(stored["spool"], stored["sequence"], link, stored["owner"]))
    await log.owner.execute("TRUNCATE records, tiles; UPDATE tree SET size = 0, frontier = '', tail = ''")
    await log.owner.copy_records_to_table("records", records=forged, columns=list(COLUMNS))
    await append_leaves(log.owner, b"".join(leaves))
    for spool, link in links.items():
        sequence = max(stored["sequence"] for stored in rows[:kept] if stored["spool"] == spool)
        await log.owner.execute("UPDATE spools SET sequence = $2, link = $3 WHERE spool = $1", spool, sequence, link)


async def test_a_record_with_everything_after_it_computed_anew_is_found_by_the_checkpoints(log: Log) -> None:
    await forge(log, 604)
    assert found(log, await log.verify_without_keys()) == [
        (
            "first:1",
            "the records are not those that were signed: the checkpoint of size 4 (folder) does not hold, "
            "and the first record that may be another one has leaf 0",
        )
    ]


async def test_the_newest_rows_taken_out_with_every_trace_are_found_by_what_was_published(log: Log) -> None:
    await log.owner.execute("DELETE FROM checkpoints WHERE size > 304")
    rows = await log.owner.fetch("SELECT * FROM records WHERE leaf < 304 ORDER BY leaf")
    leaves = [leaf_hash(row["spool"], row["sequence"], row["link"], row["owner"]) for row in rows]
    await log.owner.execute("DELETE FROM records WHERE leaf >= 304; TRUNCATE tiles")
    await log.owner.execute("UPDATE tree SET size = 0, frontier = '', tail = ''")
    await append_leaves(log.owner, b"".join(leaves))
    last = rows[-1]
    query = "UPDATE spools SET sequence = $2, link = $3 WHERE spool = $1"
    await log.owner.execute(query, last["spool"], last["sequence"], last["link"])
    assert (await verify_store(log.auditor, SIGNER.verifier_key)).findings == ()
    assert [what for _, what in found(log, await log.verify())] == [
        "the store has not the checkpoint of size 604, which folder has",
        "the newest records are missing: there are 304, and the checkpoint of size 604 (folder) vouches for more",
    ]


async def test_an_inserted_record_that_continues_the_chain_is_found(log: Log, principal: str) -> None:
    log.first.append(path="/never shipped")
    *_, last = verify_frames(0, first_link(), log.first.frames())[0]
    await log.owner.copy_records_to_table(
        "records", records=[row(log.first.id, 604, principal, last)], columns=list(COLUMNS)
    )
    assert ("first:6", "records up to 4 were committed; they end here") in found(log, await log.verify())


# What is no tampering -------------------------------------------------------------------------------------------------


async def test_a_gap_that_is_on_record_is_told_and_no_finding(log: Log) -> None:
    """As the collector goes on after records that never came."""
    before = b"b" * 32
    body = read_record((await log.owner.fetchval("SELECT body FROM records WHERE leaf = 3")), before).body
    body = body[:4] + (10).to_bytes(8, "little") + body[12:]
    link = next_link(before, body)
    gap = "INSERT INTO gaps (spool, since, until, link, reason) VALUES ($1, 5, 9, $2, 'torn')"
    await log.owner.execute(gap, log.first.id, before)
    principal = await log.owner.fetchval("SELECT owner FROM spools WHERE spool = $1", log.first.id)
    leaf = await append_leaves(log.owner, leaf_hash(log.first.id, 10, link, principal))
    rows = [row(log.first.id, leaf, principal, read_record(body, link))]
    await log.owner.copy_records_to_table("records", records=rows, columns=list(COLUMNS))
    await log.owner.execute("UPDATE spools SET sequence = 10, link = $2 WHERE spool = $1", log.first.id, link)
    verification = await log.verify_without_keys()
    assert verification.findings == ()
    assert verification.gaps == (Gap(log.first.id.hex(), 5, 9, "torn"),)
    await log.owner.execute("UPDATE gaps SET until = 8")
    assert ("first:9", "the record is missing; 10 follows") in found(log, await log.verify())


DROP = (
    "INSERT INTO dropped_records (spool, since, until, leaf, link) "
    f"SELECT spool, 1, 3, leaf, link FROM records WHERE spool = {FIRST} AND sequence = 3; "
    "INSERT INTO dropped_partitions (day, records, first_leaf, last_leaf) VALUES ('2026-09-21', 3, 0, 2); "
    "DELETE FROM records WHERE leaf < 3; "
)


async def test_records_that_retention_dropped_are_vouched_for_by_the_tree(log: Log) -> None:
    await log.owner.execute(DROP)
    verification = await log.verify()
    assert verification.findings == ()
    assert (verification.records, verification.dropped) == (601, 3)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("DELETE FROM records WHERE leaf = 3", ("first:4", "records up to 4 were committed; they end here")),
        ("UPDATE dropped_records SET link = sha256(link)", ("first:3", "the note of what was dropped was altered")),
        ("UPDATE dropped_records SET until = 2", ("first:3", "the record is missing; 4 follows")),
        ("DELETE FROM dropped_partitions", (None, "the record of leaf 0 is missing")),
    ],
)
async def test_tampering_beside_what_retention_dropped_is_found(
    log: Log, statement: str, expected: tuple[str | None, str]
) -> None:
    await log.owner.execute(DROP + statement)
    assert expected in found(log, await log.verify())


# Columns --------------------------------------------------------------------------------------------------------------


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
async def test_an_altered_column_is_found(log: Log, column: str, value: str) -> None:
    """Reports read the columns and not the bodies."""
    await log.owner.execute(f"UPDATE records SET {column} = {value} WHERE leaf = 2")
    expected = ("first:3", f"the row was altered: {column} is not as in the record")
    assert expected in found(log, await log.verify())


async def test_rows_of_values_that_do_not_fit_a_column_are_sound(
    auditor: Connection, collector: Connection, spool: Spool, principal: str
) -> None:
    spool.writer.append("decision", 2**64 - 1, {"path": b"/\xff\0", "rule": 2**64 - 1, "program": b"\0"})
    spool.writer.append("decision", 0, {"path": "/é\x7f", "rule": 0, "program": b""})
    await take_in(collector, spool.id, principal, spool.frames())
    assert (await verify_store(auditor)).findings == ()


async def test_more_records_than_are_read_at_a_time_are_verified(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr(chain, "_CHUNK", 256)
    told: list[tuple[int, int]] = []
    verification = await verify_store(log.auditor, progress=lambda done, total: told.append((done, total)))
    assert (verification.records, verification.findings) == (604, ())
    assert told == [(256, 604), (512, 604), (604, 604)]


async def test_of_very_many_findings_the_first_are_told_and_the_others_counted(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr("peltast.audit.findings.MAX_FINDINGS", 10)
    await log.owner.execute("UPDATE records SET path = '/forged'")
    verification = await log.verify()
    assert (len(verification.findings), verification.more_findings) == (10, 594)
