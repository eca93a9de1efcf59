from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.starts import start_contents

from peltast.audit.spool import (
    MAX_BATCH_BYTES,
    Position,
    SpoolReader,
    read_segment,
    spool_bytes,
    spool_folders,
    spool_heads,
)
from peltast.authz._engine import SpoolUsage, first_link, next_link, scan_frames, skip_frames, verify_frames

Spool = Any

BIG = "x" * 600_000
HEADER_BYTES = 48

WRITER = """
import sys
from pathlib import Path
from peltast.authz._engine import SpoolStart, SpoolUsage, SpoolWriter
root = Path(sys.argv[1])
writer = SpoolWriter(root, SpoolUsage(root, 1 << 20), SpoolStart(sys.stdin.buffer.read(int(sys.argv[2]))), 1)
for number in range(3):
    writer.append("decision", 2 + number, {"path": f"/{number}"})
print("written", flush=True)
sys.stdin.read()
"""


def sequences(frames: bytes) -> list[int]:
    found = scan_frames(frames)
    if found is None:
        return []
    first, last, length = found
    assert length == len(frames), "a batch holds whole records"
    return list(range(first, last + 1))


def read_all(reader: SpoolReader) -> bytes:
    batches = []
    while frames := reader.read():
        batches.append(frames)
        reader.acknowledge(sequences(frames)[-1])
    return b"".join(batches)


# Writing --------------------------------------------------------------------------------------------------------------


def test_what_is_written_reads_back_in_a_sound_chain(spool: Spool) -> None:
    assert spool.append("decision", path="/a", status=200, program=b"\1\2") == 2
    assert spool.append("end", decision_sequence=2, status=204) == 3
    records, last, link = verify_frames(0, first_link(), spool.frames())
    assert [(each.kind, each.sequence, each.schema) for each in records] == [
        ("genesis", 1, 1),
        ("decision", 2, 1),
        ("end", 3, 1),
    ]
    assert records[0].fields["spool_id"] == spool.id
    assert records[1].fields == {"path": b"/a", "status": 200, "program": b"\1\2"}
    assert records[1].time_ns < records[2].time_ns
    assert (last, link) == (3, records[2].link)
    assert records[2].link == next_link(records[1].link, records[2].body)


def test_spools_are_their_owners_only(spool: Spool) -> None:
    assert stat.S_IMODE(spool.root.stat().st_mode) == 0o700
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    files = [spool.root / "usage", *spool.folder.iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        pytest.param("guess", {}, "no record is of kind", id="kind"),
        pytest.param("decision", {"colour": "red"}, "no field is called", id="field"),
    ],
)
def test_what_no_record_holds_is_refused_and_not_written(
    spool: Spool, kind: str, fields: dict[str, str], said: str
) -> None:
    before = spool.frames()
    with pytest.raises(ValueError, match=said):
        spool.append(kind, **fields)
    assert spool.frames() == before
    assert spool.append() == 2


def test_usage_counts_what_is_written_and_not_yet_acknowledged(spool: Spool, usage: SpoolUsage) -> None:
    spool.append(path="/a")
    size = len(spool.frames())
    assert usage.held == size == spool_bytes(spool.root)
    usage.acknowledge(size - 5)
    assert usage.held == 5
    usage.reset(70)
    assert usage.held == 70
    assert SpoolUsage(spool.root, 1).held == 70, "it is shared by all who open it"


def test_a_full_segment_is_followed_by_another_that_begins_with_its_record(spool: Spool) -> None:
    for _ in range(9):
        spool.append(detail=BIG)
    first, second = spool.segments
    assert (first.name, second.name) == (f"{1:020}.segment", f"{scan_frames(read_segment(second))[0]:020}.segment")
    assert verify_frames(0, first_link(), spool.frames())[1] == 10


# Reading --------------------------------------------------------------------------------------------------------------


def test_a_reader_gets_what_was_written_and_then_what_comes(spool: Spool) -> None:
    reader = spool.reader()
    assert reader.spool_id == spool.id
    spool.append()
    assert sequences(reader.read()) == [1, 2]
    assert reader.acknowledge(2) == len(spool.frames())
    assert reader.read() == b""
    spool.append()
    assert sequences(reader.read()) == [3]


def test_what_is_not_committed_is_not_read(spool: Spool) -> None:
    whole = spool.frames()
    spool.append(path="/not committed")
    with spool.segments[0].open("r+b") as file:
        file.write(len(whole).to_bytes(8, "little"))
    assert spool.reader().read() == whole == spool.frames()


def test_a_header_that_counts_more_than_there_is_counts_what_there_is(spool: Spool) -> None:
    whole = spool.frames()
    spool.die()
    spool.segments[0].write_bytes(b"\xff" * 8 + spool.segments[0].read_bytes()[8:HEADER_BYTES] + whole)
    assert spool_bytes(spool.root) == len(whole)
    assert spool.reader().seek(0) == 0
    assert spool.reader().read() == whole


def test_what_was_not_acknowledged_is_read_again(spool: Spool) -> None:
    reader = spool.reader()
    assert sequences(reader.read()) == [1]
    spool.append()
    assert sequences(reader.read()) == [1, 2]


def test_less_than_was_sent_cannot_be_acknowledged(spool: Spool) -> None:
    reader = spool.reader()
    spool.append()
    reader.read()
    with pytest.raises(ValueError, match="record 1 is acknowledged where 2 was sent"):
        reader.acknowledge(1)


def test_batches_are_bounded_and_join_to_what_was_written(spool: Spool) -> None:
    for _ in range(9):
        spool.append(detail=BIG)
    reader, batches = spool.reader(), []
    written = spool.frames()
    while frames := reader.read():
        batches.append(frames)
        reader.acknowledge(sequences(frames)[-1])
    assert b"".join(batches) == written
    assert len(batches) > 2
    assert max(map(len, batches)) <= MAX_BATCH_BYTES


def test_a_segment_goes_when_what_follows_it_is_acknowledged(spool: Spool) -> None:
    for _ in range(9):
        spool.append(detail=BIG)
    last = spool.segments[-1]
    read_all(spool.reader())
    assert spool.segments == [last]


def test_a_segment_that_went_is_written_again_and_read_again(spool: Spool) -> None:
    reader, read = spool.reader(), b""
    for _ in range(30):
        spool.append(detail=BIG)
        read += read_all(reader)
        assert len(list(spool.folder.glob("*"))) <= 4, "a lock, two segments and a spare"
    assert sequences(read) == list(range(1, 32))
    assert verify_frames(0, first_link(), read)[1] == 31


@pytest.mark.parametrize("stands_at", range(12))
def test_a_new_reader_goes_on_where_the_store_stands(spool: Spool, stands_at: int) -> None:
    for _ in range(10):
        spool.append(detail=BIG)
    written = spool.frames()
    known = skip_frames(written, stands_at)
    before = known[0] if known else 0
    reader = spool.reader()
    assert reader.seek(stands_at) == before
    assert read_all(reader) == written[before:]


@pytest.mark.parametrize("torn", [1, 3, 4, 23, -49, -48, -33, -1])
def test_a_record_that_is_not_whole_yet_is_not_read(spool: Spool, torn: int) -> None:
    spool.append(path="/whole")
    whole = len(spool.frames())
    spool.append(path="/torn")
    complete = spool.frames()
    spool.die()
    spool.damage(complete[: whole + torn] if torn > 0 else complete[:torn])
    reader = spool.reader()
    assert sequences(reader.read()) == [1, 2]
    reader.acknowledge(2)
    assert reader.read() == b""
    spool.damage(complete)
    assert sequences(reader.read()) == [3]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(lambda frames: frames + b"\xff" * 100, "a record's length is out of bounds", id="garbage"),
        pytest.param(lambda frames: frames + bytes(60), "a record's length is out of bounds", id="zeros"),
        pytest.param(lambda frames: frames + frames[:7], "a record is cut short", id="torn"),
        pytest.param(lambda frames: frames + frames, "record 1 follows where record 3 is due", id="old records"),
    ],
)
def test_a_torn_end_is_told_once_its_writer_is_dead_and_then_the_spool_goes(
    spool: Spool, damage: Any, said: str
) -> None:
    reader = spool.reader()
    spool.append(path="/whole")
    frames = spool.frames()
    spool.die()
    spool.damage(damage(frames))
    assert reader.read() == frames
    assert reader.gap is None
    reader.acknowledge(2)
    assert reader.read() == b""
    assert reader.gap is not None
    assert said in reader.gap.reason
    assert reader.gap.position.sequence == 2
    assert reader.remove_if_finished() is None, "nobody knows yet"
    reader.acknowledge(2)
    assert reader.remove_if_finished() == len(damage(frames)) - len(frames)


def big(spool: Spool, number: int) -> None:
    for _ in range(number):
        spool.append(detail=BIG)


DAMAGE = [
    pytest.param(lambda content, at: content[:at] + b"\xff" * 4 + content[at + 4 :], id="a length"),
    pytest.param(lambda content, at: content[: at + 500] + b"?" + content[at + 501 :], id="a value"),
    pytest.param(lambda content, at: content[: at + 500], id="a file cut short"),
    pytest.param(lambda content, at: content[:at] + bytes(len(content) - at), id="pages that never came to the disk"),
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("after_restart", [False, True])
def test_what_is_damaged_is_passed_over_by_the_next_segments_anchor(
    spool: Spool, damage: Any, after_restart: bool
) -> None:
    big(spool, 3)
    fourth = len(spool.frames())
    big(spool, 9)
    first, *rest = spool.segments
    first.write_bytes(damage(first.read_bytes(), HEADER_BYTES + fourth))
    reader = spool.reader()
    good = reader.read()
    while reader.gap is None:
        reader.acknowledge(sequences(good)[-1])
        if after_restart:
            known, reader = reader.sequence, spool.reader()
            reader.seek(known)
        good = reader.read()
    known = skip_frames(spool.frames(), 0)
    assert known is None
    assert reader.sequence == 4
    assert reader.gap.reason
    assert reader.gap.position.sequence == sequences(read_segment(rest[0]))[0] - 1
    assert sequences(good)[0] == reader.gap.position.sequence + 1
    reader.acknowledge(sequences(good)[-1])
    assert reader.gap is None
    assert sequences(read_all(reader))[-1] == 13


@pytest.mark.parametrize("known", [0, 5])
def test_a_segment_that_is_gone_is_passed_over(spool: Spool, known: int) -> None:
    big(spool, 14)
    second = sequences(read_segment(spool.segments[1]))
    if known:
        spool.segments[0].unlink()
        spool.segments[0].unlink()
    else:
        spool.segments[0].unlink()
    reader = spool.reader()
    assert reader.seek(known) == 0
    frames = reader.read()
    assert reader.gap is not None
    assert reader.gap.position.sequence == (second[-1] if known else second[0] - 1)
    assert sequences(frames)[0] == reader.gap.position.sequence + 1


def test_a_loss_that_the_store_knows_is_not_told_again(spool: Spool) -> None:
    big(spool, 12)
    first, second, *_ = spool.segments
    first.write_bytes(first.read_bytes()[: HEADER_BYTES + 3000])
    begins = sequences(read_segment(second))[0]
    reader = spool.reader()
    reader.seek(begins - 1)
    assert sequences(reader.read())[0] == begins
    assert reader.gap is None


def test_heads_tell_where_every_spool_stands(spool: Spool, other_spool: Spool) -> None:
    big(spool, 9)
    _, last, link = verify_frames(0, first_link(), spool.frames())
    other = verify_frames(0, first_link(), other_spool.frames())
    expected = {spool.id: Position(last, link), other_spool.id: Position(*other[1:])}
    assert dict(spool_heads(spool.root)) == expected


def test_a_spool_that_is_closed_says_so_and_takes_no_more(spool: Spool) -> None:
    spool.append()
    spool.close()
    records, _, _ = verify_frames(0, first_link(), spool.frames())
    assert [record.kind for record in records] == ["genesis", "decision", "close"]
    with pytest.raises(ValueError, match="closed"):
        spool.append()


# Removing -------------------------------------------------------------------------------------------------------------


def test_a_spool_stays_while_its_writer_lives(spool: Spool) -> None:
    reader = spool.reader()
    read_all(reader)
    assert reader.remove_if_finished() is None
    assert spool.append() == 2
    assert sequences(reader.read()) == [2]


def test_a_spool_stays_while_there_is_something_to_read(spool: Spool) -> None:
    reader = spool.reader()
    spool.die()
    assert reader.remove_if_finished() is None
    assert sequences(reader.read()) == [1]


@pytest.mark.parametrize("torn", [0, 7])
def test_a_spool_goes_when_its_writer_is_dead_and_all_of_it_was_read(spool: Spool, torn: int) -> None:
    reader = spool.reader()
    read_all(reader)
    spool.die()
    spool.damage(spool.frames() + bytes([40, 0, 0, 0, 0, 0, 0])[:torn])
    reader.read()
    reader.acknowledge(1)
    assert reader.remove_if_finished() == torn
    assert not spool.folder.exists()


def test_a_spool_that_was_committed_before_a_restart_goes_too(spool: Spool) -> None:
    spool.append()
    spool.die()
    reader = spool.reader()
    assert reader.seek(2) > 0
    assert reader.remove_if_finished() == 0
    assert not spool.folder.exists()


def test_a_killed_writer_leaves_its_records_and_no_lock(root: Path) -> None:
    contents = start_contents()
    command = [sys.executable, "-c", WRITER, str(root), str(len(contents))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdin.write(contents)
        writer.stdin.flush()
        assert writer.stdout.readline() == b"written\n"
        [folder] = spool_folders(root)
        reader = SpoolReader(folder)
        read_all(reader)
        assert reader.remove_if_finished() is None, "it still lives"
        writer.send_signal(signal.SIGKILL)
        writer.wait(20)
    again = SpoolReader(folder)
    assert sequences(again.read()) == [1, 2, 3, 4]
    assert reader.remove_if_finished() == 0
    assert spool_folders(root) == []


def test_folders_and_bytes_are_counted_below_a_root(root: Path, spool: Spool, other_spool: Spool) -> None:
    spool.append(path="/a")
    assert spool_folders(root) == sorted([spool.folder, other_spool.folder])
    assert spool_bytes(root) == len(spool.frames()) + len(other_spool.frames())
    shutil.rmtree(spool.folder)
    assert spool_bytes(root) == len(other_spool.frames())
    assert spool_folders(root / "missing") == []
