"""The reading end of spools: segments on disk to batches of whole records, and away once they are committed."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from typing import BinaryIO

import structlog

from peltast.authz._engine import scan_frames, skip_frames

__all__ = ["SpoolReader", "read_segment", "spool_bytes", "spool_folders"]

MAX_BATCH_BYTES = 2 * 1024 * 1024
"""Above the longest frame, so that a batch always holds a whole one."""

_HEADER_BYTES = 8
"""A segment begins with the number of bytes of whole records that follow (`authz/engine/src/segment.rs`)."""

log = structlog.get_logger()


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


def _segment_bytes(segment: Path) -> int:
    with segment.open("rb") as file:
        return _committed(file)


def _committed(file: BinaryIO) -> int:
    """The bytes of whole records, by the header; never more than there are, whatever came to the disk."""
    there = os.fstat(file.fileno()).st_size - _HEADER_BYTES
    return max(0, min(int.from_bytes(file.read(_HEADER_BYTES), "little"), there))


class SpoolReader:
    """Reads one spool from where the store stands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segment: Path | None = None
        self._offset = 0
        self._sent: tuple[int, int] = (0, 0)
        self.sequence = 0

    @property
    def spool_id(self) -> bytes:
        """The spool's id."""
        return bytes.fromhex(self._folder.name)

    def seek(self, sequence: int) -> int:
        """Goes to the record after `sequence`; gives the bytes of the records before it, which are no longer needed."""
        self.sequence = sequence
        passed = 0
        for segment in self._segments():
            skipped = skip_frames(read_segment(segment), sequence)
            if skipped is None:
                break
            self._segment, self._offset = segment, skipped[0]
            passed += skipped[0]
        return passed

    def read(self) -> bytes:
        """The next batch of whole records; empty where there are none now."""
        while True:
            segments = self._segments()
            if self._segment is None or self._segment not in segments:
                if not segments:
                    return b""
                self._segment, self._offset = segments[0], 0
            frames = read_segment(self._segment, self._offset, MAX_BATCH_BYTES)
            found = scan_frames(frames)
            if found is not None:
                _, last, length = found
                self._sent = (last, length)
                return frames[:length]
            following = [segment for segment in segments if segment > self._segment]
            if not following:
                return b""
            self._segment, self._offset = following[0], 0

    def acknowledge(self, sequence: int) -> int:
        """Notes that everything up to `sequence` is committed; gives the bytes that were let go."""
        last, length = self._sent
        if sequence < last:
            raise ValueError(f"record {sequence} is acknowledged where {last} was sent")
        self.sequence, self._offset, self._sent = sequence, self._offset + length, (0, 0)
        for segment in self._segments():
            if self._segment is not None and segment < self._segment:
                segment.replace(self._folder / "spare")  # which the writer takes when it needs a segment
        return length

    def remove_if_finished(self) -> int | None:
        """Removes the spool if its writer is dead and all of it was read; gives the bytes of a record cut short.

        None where the spool stays. A writer's death cuts no record short; what comes to the disk can.
        """
        if not self._writer_is_dead() or self.read():
            return None
        torn = _segment_bytes(self._segment) - self._offset if self._segment else 0
        if torn:
            log.warning("record cut short", spool=self._folder.name, after=self.sequence, bytes=torn)
        shutil.rmtree(self._folder)
        return torn

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
