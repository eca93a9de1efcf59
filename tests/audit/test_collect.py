from __future__ import annotations

import itertools
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from support.starts import KEYS, PRINCIPAL, frame, key_of, keyring, start_contents, take_in

from peltast.audit.chain import verify_store
from peltast.audit.collector.collect import BadBatch, Collector, NotTheOwner
from peltast.audit.collector.keyring import Keyring
from peltast.audit.collector.keys import CollectorKeys
from peltast.audit.columns import COLUMNS, row
from peltast.audit.protos.collector_pb2 import Batch
from peltast.audit.spool import SpoolReader, spool_folders
from peltast.authz._engine import (
    Record,
    SpoolStart,
    SpoolUsage,
    SpoolWriter,
    first_link,
    scan_frames,
    skip_frames,
    verify_frames,
)

Spool = Any
Connection = asyncpg.Connection

OTHER = "spiffe://mesh.example/ns/bookshop/sa/storefront"


def split(frames: bytes) -> list[bytes]:
    """The frames of single records."""
    found = scan_frames(frames)
    assert found is not None
    ends = [skip_frames(frames, sequence) for sequence in range(found[0], found[1] + 1)]
    offsets = [0, *(end[0] for end in ends if end)]
    return [frames[start:end] for start, end in itertools.pairwise(offsets)]


async def sequences(owner: Connection) -> list[int]:
    return [row["sequence"] for row in await owner.fetch("SELECT sequence FROM records ORDER BY sequence")]


async def quarantined(owner: Connection) -> list[tuple[str, bytes]]:
    return [(row["reason"], row["frames"]) for row in await owner.fetch("SELECT reason, frames FROM quarantine")]


async def test_a_spool_that_is_not_known_stands_at_its_beginning(
    collector: Connection, spool: Spool, principal: str
) -> None:
    assert await take_in(collector, spool.id, principal, b"") == 0


async def test_a_batch_is_committed_with_the_spools_place(
    collector: Connection, owner: Connection, spool: Spool, principal: str
) -> None:
    spool.append(path="/a")
    assert await take_in(collector, spool.id, principal, spool.frames()) == 2
    assert await sequences(owner) == [1, 2]
    records, _, link = verify_frames(0, first_link(), spool.frames())
    stored = await owner.fetchrow("SELECT * FROM spools")
    assert stored is not None
    assert (stored["spool"], stored["owner"], stored["sequence"], stored["link"]) == (spool.id, principal, 2, link)
    bodies = await owner.fetch("SELECT body, owner FROM records ORDER BY sequence")
    assert [(each["body"], each["owner"]) for each in bodies] == [(record.body, principal) for record in records]


async def test_the_next_batch_goes_on(collector: Connection, owner: Connection, spool: Spool, principal: str) -> None:
    first = spool.frames()
    await take_in(collector, spool.id, principal, first)
    spool.append()
    assert await take_in(collector, spool.id, principal, spool.frames()[len(first) :]) == 2
    assert await take_in(collector, spool.id, principal, b"") == 2
    assert await sequences(owner) == [1, 2]


async def test_a_batch_that_comes_again_is_acknowledged_again_and_stored_once(
    collector: Connection, owner: Connection, stored: Spool, principal: str
) -> None:
    for _ in range(2):
        assert await take_in(collector, stored.id, principal, stored.frames()) == 4
    assert await take_in(collector, stored.id, principal, split(stored.frames())[1]) == 4
    assert await sequences(owner) == [1, 2, 3, 4]
    assert await quarantined(owner) == []


async def test_of_a_batch_that_is_known_in_part_the_rest_is_stored(
    collector: Connection, owner: Connection, stored: Spool, principal: str
) -> None:
    stored.append(path="/d")
    assert await take_in(collector, stored.id, principal, stored.frames()) == 5
    assert await sequences(owner) == [1, 2, 3, 4, 5]


async def test_spools_do_not_disturb_each_other(
    collector: Connection, owner: Connection, stored: Spool, usage: SpoolUsage, principal: str
) -> None:
    other_spool = type(stored)(stored.root, usage, OTHER)
    assert await take_in(collector, other_spool.id, OTHER, other_spool.frames()) == 1
    owners = await owner.fetch("SELECT spool, owner FROM spools")
    assert {each["spool"]: each["owner"] for each in owners} == {stored.id: principal, other_spool.id: OTHER}


async def test_a_spool_of_another_owner_is_refused_and_leaves_nothing(
    collector: Connection, owner: Connection, stored: Spool
) -> None:
    stored.append(path="/forged")
    for frames in (b"", stored.frames()):
        with pytest.raises(NotTheOwner, match=f"belongs to .*catalog; {OTHER} ships it"):
            await take_in(collector, stored.id, OTHER, frames)
    assert await sequences(owner) == [1, 2, 3, 4]
    assert await quarantined(owner) == []


def altered(frames: bytes) -> bytes:
    """The last byte of the first body is turned, its link left."""
    body_end = 4 + int.from_bytes(frames[:4], "little")
    return frames[: body_end - 1] + bytes([frames[body_end - 1] ^ 1]) + frames[body_end:]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        pytest.param(lambda new: new[1], "record 6 follows where record 5 is due", id="a gap"),
        pytest.param(lambda new: new[0] + new[0], "record 5 follows where record 6 is due", id="a record twice"),
        pytest.param(
            lambda new: altered(new[0]) + new[1], "record 5: its link does not follow", id="an altered record"
        ),
        pytest.param(lambda new: new[0] + new[1][:-1], "cut short", id="a record cut short"),
        pytest.param(lambda new: b"\xff" * 64, "out of bounds", id="garbage"),
        pytest.param(
            lambda new: new[0][:-17] + bytes([new[0][-17] ^ 1]) + new[0][-16:],
            "its link does not follow",
            id="an altered link",
        ),
        pytest.param(
            lambda new: new[0][:-1] + bytes([new[0][-1] ^ 1]), "5: its code is not by its spool's key", id="a code"
        ),
    ],
)
async def test_a_batch_that_does_not_go_on_is_kept_aside_and_nothing_of_it_stored(
    collector: Connection, owner: Connection, stored: Spool, principal: str, bad: Any, said: str
) -> None:
    known = len(stored.frames())
    stored.append(path="/d")
    stored.append(path="/e")
    frames = bad(split(stored.frames()[known:]))
    for _ in range(2):
        with pytest.raises(BadBatch, match=said):
            await take_in(collector, stored.id, principal, frames)
    assert await sequences(owner) == [1, 2, 3, 4]
    [(reason, kept)] = await quarantined(owner)
    assert said in reason
    assert kept == frames
    assert await take_in(collector, stored.id, principal, stored.frames()[known:]) == 6, "the good ones still go on"


async def test_a_fork_is_found_and_kept_aside(
    collector: Connection, owner: Connection, stored: Spool, other_spool: Spool, principal: str
) -> None:
    """The same sequences with another history."""
    for path in ("/x", "/y", "/z"):
        other_spool.append(path=path)
    with pytest.raises(BadBatch, match="record 4 was shipped before with another content: the spool has forked"):
        await take_in(collector, stored.id, principal, other_spool.frames())
    assert [frames for _, frames in await quarantined(owner)] == [other_spool.frames()]


async def test_a_fork_that_goes_on_is_found_too(
    collector: Connection, owner: Connection, stored: Spool, other_spool: Spool, principal: str
) -> None:
    for path in ("/a", "/b", "/c", "/d", "/e"):
        other_spool.append(path=path)
    with pytest.raises(BadBatch, match="forked"):
        await take_in(collector, stored.id, principal, other_spool.frames())
    with pytest.raises(BadBatch, match="record 5: its link does not follow"):
        await take_in(collector, stored.id, principal, b"".join(split(other_spool.frames())[4:]))
    assert await sequences(owner) == [1, 2, 3, 4]


async def test_a_second_end_of_one_decision_is_kept_aside(
    collector: Connection, owner: Connection, stored: Spool, principal: str
) -> None:
    """It is no trouble of the store's, and would come again for ever."""
    stored.append("end", decision_sequence=2, status=200)
    stored.append("end", decision_sequence=2, status=500)
    with pytest.raises(BadBatch):
        await take_in(collector, stored.id, principal, stored.frames())
    assert await sequences(owner) == [1, 2, 3, 4]
    assert len(await quarantined(owner)) == 1


async def test_a_schema_that_no_column_holds_is_kept_aside(
    collector: Connection, owner: Connection, spool: Spool, principal: str
) -> None:
    """Written by something that is none of ours, with a sound chain."""
    genesis = spool.frames()
    body = b"\xff\xff" + genesis[6 : 4 + int.from_bytes(genesis[:4], "little")]
    with pytest.raises(BadBatch, match="the store does not take it"):
        await take_in(collector, spool.id, principal, frame(body, first_link(), key_of(spool.start, 0, 1)))
    assert len(await quarantined(owner)) == 1


# Keys and starts ------------------------------------------------------------------------------------------------------


def body_of(framed: bytes) -> bytes:
    return framed[4 : 4 + int.from_bytes(framed[:4], "little")]


def links_of(frames: bytes) -> list[bytes]:
    return [first_link(), *(record.link for record in verify_frames(0, first_link(), frames)[0])]


@pytest.mark.parametrize("stolen", [5, 6, 9])
async def test_whoever_has_a_later_key_can_write_nothing_earlier(
    collector: Connection, owner: Connection, spool: Spool, principal: str, stolen: int
) -> None:
    """A sidecar was taken over while record `stolen` was due, and record 4 is to be another."""
    for path in ("/a", "/b", "/c"):
        spool.append(path=path)
    *before, last = split(spool.frames())
    forged = body_of(last).replace(b"/c", b"/x")
    key = key_of(spool.start, 0, stolen)
    with pytest.raises(BadBatch, match="record 4: its code is not by its spool's key"):
        await take_in(
            collector, spool.id, principal, b"".join(before) + frame(forged, links_of(spool.frames())[3], key)
        )
    assert await sequences(owner) == []
    assert await take_in(collector, spool.id, principal, spool.frames()) == 4


async def test_what_is_written_with_the_key_of_the_record_is_taken(
    collector: Connection, spool: Spool, principal: str
) -> None:
    """So the test above fails for the key alone."""
    spool.append(path="/a")
    first, second = split(spool.frames())
    other = frame(body_of(second).replace(b"/a", b"/x"), links_of(first)[1], key_of(spool.start, 0, 2))
    assert await take_in(collector, spool.id, principal, first + other) == 2


async def test_records_without_a_code_are_no_longer_taken(collector: Connection, spool: Spool, principal: str) -> None:
    body = body_of(spool.frames())
    body = body[:2] + b"\x01" + body[3:]
    with pytest.raises(BadBatch, match="its code is not by its spool's key"):
        await take_in(collector, spool.id, principal, frame(body, first_link(), b"")[:-16])


async def test_a_spool_of_somebody_elses_start_is_refused(
    collector: Connection, owner: Connection, spool: Spool
) -> None:
    with pytest.raises(BadBatch, match=f"the start is by {PRINCIPAL}; {OTHER} ships it"):
        await take_in(collector, spool.id, OTHER, spool.frames())
    assert await owner.fetchval("SELECT count(*) FROM starts") == 0


async def test_a_start_that_is_used_again_is_refused(
    collector: Connection, owner: Connection, stored: Spool, principal: str
) -> None:
    """Somebody kept the start file, and begins with its keys anew."""
    again = SpoolWriter(stored.root, stored.usage, SpoolStart(stored.start), stored.clock)
    again.append("decision", stored.clock, {"path": "/forged"})
    [folder] = [each for each in spool_folders(stored.root) if each != stored.folder]
    with pytest.raises(BadBatch, match=r"spool 0 of start [0-9a-f]{64} is another one"):
        await take_in(collector, bytes.fromhex(folder.name), principal, SpoolReader(folder).read())
    assert await sequences(owner) == [1, 2, 3, 4]


async def test_spools_of_one_start_have_keys_of_their_own(
    collector: Connection, owner: Connection, root: Path, usage: SpoolUsage, principal: str
) -> None:
    start = SpoolStart(start_contents())
    writers = [SpoolWriter(root, usage, start, 1) for _ in range(3)]
    assert len(writers) == len(spool_folders(root))
    for folder in spool_folders(root):
        await take_in(collector, bytes.fromhex(folder.name), principal, SpoolReader(folder).read())
    stored = await owner.fetch("SELECT start_index, start FROM spools ORDER BY start_index")
    assert [each["start_index"] for each in stored] == [0, 1, 2]
    assert len({each["start"] for each in stored}) == 1
    assert await owner.fetchval("SELECT count(*) FROM starts WHERE owner = $1", principal) == 1


async def test_a_start_that_is_sealed_to_another_collector_is_refused(
    collector: Connection, spool: Spool, principal: str
) -> None:
    other = Keyring(CollectorKeys(X25519PrivateKey.generate(), KEYS.hashing), keyring().roots)
    with pytest.raises(BadBatch, match="not sealed to this collector"):
        await Collector(other, lambda *_: None).take_in(
            collector, principal, Batch(spool=spool.id, frames=spool.frames())
        )


async def test_a_genesis_of_another_spool_is_refused(
    collector: Connection, spool: Spool, other_spool: Spool, principal: str
) -> None:
    with pytest.raises(BadBatch, match="the genesis record is another spool's"):
        await take_in(collector, other_spool.id, principal, spool.frames())


async def test_a_second_genesis_is_refused(collector: Connection, stored: Spool, principal: str) -> None:
    stored.append("genesis", spool_id=stored.id)
    with pytest.raises(BadBatch, match="record 5: a spool has one genesis record"):
        await take_in(collector, stored.id, principal, stored.frames())


async def test_a_close_is_noted_and_nothing_follows_it(
    collector: Connection, owner: Connection, stored: Spool, principal: str
) -> None:
    assert await owner.fetchval("SELECT closed FROM spools") is False
    stored.close()
    assert await take_in(collector, stored.id, principal, stored.frames()) == 5
    assert await owner.fetchval("SELECT closed FROM spools") is True
    close = body_of(split(stored.frames())[4])
    late = close[:4] + (6).to_bytes(8, "little") + close[12:]
    link = links_of(stored.frames())[5]
    with pytest.raises(BadBatch, match="follows the spool's close"):
        await take_in(collector, stored.id, principal, frame(late, link, key_of(stored.start, 0, 6)))


async def test_keys_are_at_hand_or_made_again(collector: Connection, stored: Spool, principal: str) -> None:
    """The first and the last batch are taken by collectors that were just started."""
    one = Collector(keyring(), lambda *_: None)
    for number in range(5, 9):
        stored.append(path=f"/{number}")
        last = split(stored.frames())[-1]
        assert await one.take_in(collector, principal, Batch(spool=stored.id, frames=last)) == number
    with pytest.raises(BadBatch):
        await one.take_in(collector, principal, Batch(spool=stored.id, frames=last[:-1]))
    stored.append(path="/9")
    assert await one.take_in(collector, principal, Batch(spool=stored.id, frames=stored.frames())) == 9
    stored.append(path="/10")
    assert await take_in(collector, stored.id, principal, stored.frames()) == 10


# Gaps -----------------------------------------------------------------------------------------------------------------


def gap_before(frames: bytes, sequence: int) -> dict[str, Any]:
    return {"reason": "damaged", "from_sequence": sequence, "from_link": links_of(frames)[sequence]}


async def test_a_gap_is_noted_and_the_spool_goes_on(
    collector: Connection, owner: Connection, stored: Spool, principal: str
) -> None:
    for path in ("/d", "/e", "/f"):
        stored.append(path=path)
    whole = stored.frames()
    told: list[tuple[str, str, str]] = []
    one = Collector(keyring(), lambda *what: told.append(what))
    batch = Batch(spool=stored.id, frames=split(whole)[6], **gap_before(whole, 6))
    for _ in range(2):
        assert await one.take_in(collector, principal, batch) == 7
    assert await sequences(owner) == [1, 2, 3, 4, 7]
    [gap] = await owner.fetch("SELECT spool, since, until, link, reason FROM gaps")
    assert tuple(gap) == (stored.id, 5, 6, links_of(whole)[6], "damaged")
    assert told == [("spool.gap", f"{stored.id.hex()} {principal}", "from 5 to 6: damaged")]
    stored.append(path="/g")
    assert await take_in(collector, stored.id, principal, split(stored.frames())[7]) == 8
    assert (await verify_store(owner)).sound


async def test_a_torn_end_is_noted_and_moves_nothing(
    collector: Connection, owner: Connection, stored: Spool, principal: str
) -> None:
    for _ in range(2):
        assert await take_in(collector, stored.id, principal, b"", reason="cut short", from_sequence=4) == 4
    [gap] = await owner.fetch("SELECT since, until, link, reason FROM gaps")
    assert tuple(gap) == (5, 5, None, "cut short")
    assert (await verify_store(owner)).sound


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        pytest.param({"from_sequence": 2**63}, "is none", id="too long"),
        pytest.param({"from_link": b"short"}, "is none", id="a short link"),
        pytest.param({"from_link": bytes(32)}, "its link does not follow", id="another link"),
        pytest.param({"from_sequence": 5}, "record 7 follows where record 6 is due", id="another sequence"),
    ],
)
async def test_a_gap_that_is_none_is_refused(
    collector: Connection, owner: Connection, stored: Spool, principal: str, gap: Any, said: str
) -> None:
    for path in ("/d", "/e", "/f"):
        stored.append(path=path)
    whole = stored.frames()
    with pytest.raises(BadBatch, match=said):
        await take_in(collector, stored.id, principal, split(whole)[6], **{**gap_before(whole, 6), **gap})
    assert await owner.fetchval("SELECT count(*) FROM gaps") == 0


async def test_a_spool_whose_genesis_is_lost_is_kept_aside(
    collector: Connection, owner: Connection, spool: Spool, principal: str
) -> None:
    spool.append(path="/a")
    whole = spool.frames()
    with pytest.raises(BadBatch, match="genesis never came"):
        await take_in(collector, spool.id, principal, split(whole)[1], **gap_before(whole, 1))
    assert len(await quarantined(owner)) == 1


async def test_what_is_kept_aside_is_told_once(collector: Connection, stored: Spool, principal: str) -> None:
    told: list[tuple[str, str, str]] = []
    one = Collector(keyring(), lambda *what: told.append(what))
    stored.append(path="/d")
    for _ in range(2):
        with pytest.raises(BadBatch):
            await one.take_in(collector, principal, Batch(spool=stored.id, frames=altered(split(stored.frames())[4])))
    [(action, subject, detail)] = told
    assert (action, subject) == ("spool.refuse", f"{stored.id.hex()} {principal}")
    assert "record 5: its link does not follow" in detail


# Rows -----------------------------------------------------------------------------------------------------------------


def row_of(spool: Spool, record: Record) -> dict[str, Any]:
    return dict(zip(COLUMNS, row(spool.id, 7, "owner", record), strict=True))


TEXTS = [
    pytest.param(b"/plain", "/plain", id="plain"),
    pytest.param("/größe/🛡".encode(), "/größe/🛡", id="UTF-8"),
    pytest.param(b"/\xff\xfe", r"/\xff\xfe", id="bad UTF-8"),
    pytest.param(b"/a\0b", r"/a\x00b", id="NUL"),
    pytest.param(b"\xed\xa0\x80", r"\xed\xa0\x80", id="a surrogate"),
    pytest.param(b"'; DROP TABLE records; --", "'; DROP TABLE records; --", id="SQL"),
    pytest.param(b"\\N\t\n", "\\N\t\n", id="what COPY means by nothing"),
    pytest.param(b"", "", id="empty"),
]


@pytest.mark.parametrize(("given", "shown"), TEXTS)
async def test_any_text_is_stored_as_text_and_to_the_byte(
    collector: Connection, owner: Connection, spool: Spool, principal: str, given: bytes, shown: str
) -> None:
    spool.append(path=given)
    await take_in(collector, spool.id, principal, spool.frames())
    stored = await owner.fetchrow("SELECT path, method, body FROM records WHERE sequence = 2")
    assert stored is not None
    assert (stored["path"], stored["method"]) == (shown, None)
    assert stored["body"].endswith(given)


LONG = secrets.token_hex(4096)
PRINCIPALS = [
    pytest.param("spiffe://mesh.example/é", "spiffe://mesh.example/é", id="as usual"),
    pytest.param(LONG[:2048], LONG[:2048], id="the longest SPIFFE ID"),
    pytest.param(LONG[:2049], LONG[:512] + "…", id="a longer one"),
    pytest.param(LONG, LONG[:512] + "…", id="what a certificate of another issuer may hold"),
    pytest.param("🛡" * 513, "🛡" * 512 + "…", id="characters of four bytes"),
    pytest.param(b"\xff" * 513, r"\xff" * 128 + "…", id="what is longer as it is shown"),
]


@pytest.mark.parametrize(("given", "shown"), PRINCIPALS)
async def test_any_principal_is_stored_and_what_no_index_holds_is_cut(
    collector: Connection, owner: Connection, spool: Spool, principal: str, given: str | bytes, shown: str
) -> None:
    """It is the one column of a caller's choice that an index is on."""
    spool.append(source_principal=given)
    assert await take_in(collector, spool.id, principal, spool.frames()) == 2
    stored = await owner.fetchrow("SELECT source_principal, body FROM records WHERE sequence = 2")
    assert stored is not None
    assert stored["source_principal"] == shown
    assert stored["body"].endswith(given.encode() if isinstance(given, str) else given)
    assert (await verify_store(owner)).findings == ()


@pytest.mark.parametrize(
    ("given", "shown"),
    [(0, 0), (65_535, 65_535), (2**63 - 1, 2**63 - 1), (2**63, 2**63 - 1), (2**64 - 1, 2**63 - 1)],
)
async def test_any_number_is_stored_and_those_that_are_too_large_as_the_largest(
    collector: Connection, owner: Connection, spool: Spool, principal: str, given: int, shown: int
) -> None:
    spool.append(rule=given, bytes_sent=given, decision_sequence=given)
    await take_in(collector, spool.id, principal, spool.frames())
    stored = await owner.fetchrow("SELECT rule, bytes_sent, decision_sequence FROM records WHERE sequence = 2")
    assert stored is not None
    assert tuple(stored) == (shown, shown, shown)


@pytest.mark.parametrize(
    ("time_ns", "shown"),
    [
        pytest.param(0, datetime(1970, 1, 1, tzinfo=UTC), id="the epoch"),
        pytest.param(1_500_000_000_123_456_789, datetime(2017, 7, 14, 2, 40, 0, 123456, tzinfo=UTC), id="some time"),
        pytest.param(2**63, datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC), id="over 2^63"),
        pytest.param(2**64 - 1, datetime(2554, 7, 21, 23, 34, 33, 709551, tzinfo=UTC), id="the last that fits"),
    ],
)
async def test_any_time_is_stored_and_kept_to_the_nanosecond(
    collector: Connection, owner: Connection, spool: Spool, principal: str, time_ns: int, shown: datetime
) -> None:
    spool.writer.append("decision", time_ns, {})
    await take_in(collector, spool.id, principal, spool.frames())
    stored = await owner.fetchrow("SELECT time, time_ns FROM records WHERE sequence = 2")
    assert stored is not None
    assert (stored["time"], int(stored["time_ns"])) == (shown, time_ns)


def test_a_row_has_every_field_of_its_record(spool: Spool) -> None:
    spool.append("act", actor="spiffe://a/b", action="svid.issue", object="1f", effect="allow", keys=b"\1")
    [record] = verify_frames(0, first_link(), spool.frames())[0][1:]
    found = row_of(spool, record)
    given = {name: value for name, value in found.items() if value is not None}
    assert given == {
        "spool": spool.id,
        "sequence": 2,
        "leaf": 7,
        "owner": "owner",
        "schema": 1,
        "kind": "act",
        "time": found["time"],
        "time_ns": record.time_ns,
        "body": record.body,
        "link": record.link,
        "mac": record.mac,
        "actor": "spiffe://a/b",
        "action": "svid.issue",
        "object": "1f",
        "effect": "allow",
        "keys": b"\1",
    }


async def test_every_column_is_one_of_the_stores_and_no_column_is_forgotten(owner: Connection) -> None:
    stored = await owner.fetch("SELECT column_name FROM information_schema.columns WHERE table_name = 'records'")
    assert {each["column_name"] for each in stored} == {*COLUMNS, "namespace", "redacted", "hashed"}
