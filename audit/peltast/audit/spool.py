"""The reading end of spools: segments on disk to batches of whole records, and away once they are committed."""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from peltast.authz._engine import first_link, follow_frames, skip_frames

__all__ = ["Gap", "Position", "SpoolReader", "read_segment", "spool_bytes", "spool_folders", "spool_heads"]

MAX_BATCH_BYTES = 2 * 1024 * 1024
"""Above the longest frame, so that a batch always holds a whole one."""

_COUNT_BYTES, _SEQUENCE_BYTES, _LINK_BYTES = 8, 8, 32
_HEADER_BYTES = _COUNT_BYTES + _SEQUENCE_BYTES + _LINK_BYTES
"""A segment begins with the number of bytes of whole records that follow, and where the chain stands before them
(`authz/engine/src/segment.rs`)."""

_NO_LINK = bytes(_LINK_BYTES)
"""Of a record that is not at hand: only the next segment's anchor can go on from it."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Position:
    """Where a chain stands: after the record `sequence`, which has this link."""

    sequence: int
    link: bytes


@dataclass(frozen=True)
class Gap:
    """Records before those that were read are lost. Where none could be read, the spool ends with a torn one."""

    reason: str
    position: Position
    """After the last record that is lost, or before the torn one."""


def read_segment(segment: Path, offset: int = 0, limit: int | None = None) -> bytes:
    """The records of `segment` from `offset` on, at most `limit` bytes of them."""
    with segment.open("rb") as file:
        rest = max(_committed(file) - offset, 0)
        file.seek(_HEADER_BYTES + offset)
        return file.read(rest if limit is None else min(rest, limit))


def spool_folders(root: Path) -> list[Path]:
    """The folders of all spools below `root`. One that its writer has not locked yet has a name with a dot."""
    if not root.is_dir():
        return []
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def spool_bytes(root: Path) -> int:
    """The bytes of all records below `root`."""
    return sum(_segment_bytes(segment) for folder in spool_folders(root) for segment in folder.glob("*.segment"))


def spool_heads(root: Path) -> list[tuple[bytes, Position]]:
    """Where each spool below `root` stands, by its id; of one that is damaged, as far as it can be read."""
    heads = []
    for folder in spool_folders(root):
        if segments := sorted(folder.glob("*.segment")):
            start = _anchor(segments[-1])
            _, sequence, link, _ = follow_frames(start.sequence, start.link, read_segment(segments[-1]))
            heads.append((bytes.fromhex(folder.name), Position(sequence, link)))
    return heads


def _anchor(segment: Path) -> Position:
    """Where the chain stands before the first record of `segment`, by its header."""
    with segment.open("rb") as file:
        header = file.read(_HEADER_BYTES).ljust(_HEADER_BYTES, b"\0")
    sequence = header[_COUNT_BYTES : _COUNT_BYTES + _SEQUENCE_BYTES]
    return Position(int.from_bytes(sequence, "little"), header[-_LINK_BYTES:])


def _segment_bytes(segment: Path) -> int:
    with segment.open("rb") as file:
        return _committed(file)


def _committed(file: BinaryIO) -> int:
    """The bytes of whole records, by the header; never more than there are, whatever came to the disk."""
    there = os.fstat(file.fileno()).st_size - _HEADER_BYTES
    return max(0, min(int.from_bytes(file.read(_COUNT_BYTES), "little"), there))


class SpoolReader:
    """Reads one spool from where the store stands.

    The chain is followed as it is read. What is torn or damaged is passed over: the next segment says where it begins.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment: Path | None = None
        self._offset = 0
        self._position = Position(0, first_link())
        self._sent: tuple[Position, int] | None = None
        self._problem = ""
        self._passed_over = 0
        self.gap: Gap | None = None
        self.told: Gap | None = None

    @property
    def spool_id(self) -> bytes:
        """The spool's id."""
        return bytes.fromhex(self._folder.name)

    @property
    def sequence(self) -> int:
        """The last record that is committed."""
        return self._position.sequence

    def seek(self, sequence: int) -> int:
        """Goes to the record after `sequence`; gives the bytes of the records before it, which are no longer needed."""
        begun = [segment for segment in self._segments() if _anchor(segment).sequence <= sequence]
        if not begun:
            self._position = Position(sequence, _NO_LINK) if sequence else self._position
            return 0
        *passed, self._segment = begun
        start = _anchor(self._segment)
        found = skip_frames(read_segment(self._segment), sequence)
        self._offset, last, link = found if found is not None else (0, start.sequence, start.link)
        # Where these are not the same, what is between is damaged, and was told.
        self._position = Position(sequence, link if last == sequence else _NO_LINK)
        return sum(map(_segment_bytes, passed)) + self._offset

    def read(self) -> bytes:
        """The next batch of whole records; empty where there are none now. Then :attr:`gap` tells what is lost."""
        while self._enter_segment():
            assert self._segment is not None, "it was entered"
            frames = read_segment(self._segment, self._offset, MAX_BATCH_BYTES)
            if length := self._follow(frames):
                return frames[:length]
            if not self._leave_segment(frames):
                return b""
        return b""

    def acknowledge(self, sequence: int) -> int:
        """Notes that everything up to `sequence` is committed; gives the bytes that were let go."""
        if self._sent is None:
            self.told = self.gap
            return 0
        last, length = self._sent
        if sequence < last.sequence:
            raise ValueError(f"record {sequence} is acknowledged where {last.sequence} was sent")
        let_go = length + self._passed_over
        self._position, self._offset, self._passed_over = last, self._offset + length, 0
        self._sent, self._problem, self.gap = None, "", None
        for segment in self._segments():
            if self._segment is not None and segment < self._segment:
                segment.replace(self._folder / "spare")  # which the writer takes when it needs a segment
        return let_go

    def remove_if_finished(self) -> int | None:
        """Removes the spool if its writer is dead and all of it was read; gives the bytes of a record cut short.

        None where the spool stays. A writer's death cuts no record short; what comes to the disk can.
        """
        if not self._writer_is_dead() or self.read() or self.gap != self.told:
            return None
        torn = _segment_bytes(self._segment) - self._offset if self._segment else 0
        shutil.rmtree(self._folder)
        return torn + self._passed_over

    def _enter_segment(self) -> bool:
        """Goes to the first segment where it is in none; tells whether there is one."""
        segments = self._segments()
        if self._segment not in segments:
            self._segment, self._offset = (segments[0] if segments else None), 0
        return self._segment is not None

    def _follow(self, frames: bytes) -> int:
        """The bytes of `frames` that continue the chain: from where it stands, or after a loss from the anchor."""
        self._sent = self.gap = None
        starts = [self._position]
        if self._offset == 0 and self._segment is not None:
            anchor = _anchor(self._segment)
            starts += [anchor] if anchor.sequence >= self._position.sequence and anchor != self._position else []
        for start in starts:
            length, sequence, link, problem = follow_frames(start.sequence, start.link, frames)
            if length:
                self._sent = (Position(sequence, link), length)
                if start.sequence > self._position.sequence:
                    self.gap = Gap(self._problem or "records are missing", start)
                return length
            self._problem = self._problem or problem or ("a record is cut short" if frames else "")
        return 0

    def _leave_segment(self, frames: bytes) -> bool:
        """Goes to the next segment, whether or not `frames` are left in this one; tells whether there is one."""
        assert self._segment is not None, "it is in one"
        following = [segment for segment in self._segments() if segment > self._segment]
        if following:
            self._passed_over += _segment_bytes(self._segment) - self._offset
            self._segment, self._offset = following[0], 0
            return True
        if frames and self._writer_is_dead() and read_segment(self._segment, self._offset, MAX_BATCH_BYTES) == frames:
            self.gap = Gap(self._problem, self._position)
        return False

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("*.segment"))

    def _writer_is_dead(self) -> bool:
        try:
            with (self._folder / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True  # it died before its first record
        except BlockingIOError:
            return False
        return True
