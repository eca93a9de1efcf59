"""JSON lines: to files in a folder, each synced to disk before the export goes on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from peltast.audit.export.receiver import Entry, Unavailable

__all__ = ["FileReceiver", "json_lines"]

FILE_BYTES = 64 * 1024 * 1024
"""A file that is as large is not added to."""


def json_lines(entries: Sequence[Entry]) -> bytes:
    """A line for each event."""
    return b"".join(json.dumps(entry.event, separators=(",", ":")).encode() + b"\n" for entry in entries)


class FileReceiver:
    """Files ``NAME-LEAF.jsonl`` (0600) in `folder`; the leaf is that of the first record in it."""

    def __init__(self, folder: Path, name: str, file_bytes: int = FILE_BYTES) -> None:
        self._folder = folder
        self._name = name
        self._file_bytes = file_bytes

    async def send(self, entries: Sequence[Entry]) -> None:
        try:
            await asyncio.to_thread(self._append, entries)
        except OSError as error:
            raise Unavailable(f"{self._folder}: {error.strerror}") from error

    async def close(self) -> None:
        pass

    def _append(self, entries: Sequence[Entry]) -> None:
        file = self._file(entries[0].row["leaf"])
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b") as opened:
            _drop_torn_line(opened)
            opened.write(json_lines(entries))
            opened.flush()
            os.fsync(opened.fileno())
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # else a power loss may take a new file's name away
        finally:
            os.close(folder)

    def _file(self, leaf: int) -> Path:
        """The file to write to: the last one, while there is room in it."""
        last = max(self._folder.glob(f"{self._name}-{'[0-9]' * 20}.jsonl"), default=None)
        if last is not None and last.stat().st_size < self._file_bytes:
            return last
        return self._folder / f"{self._name}-{leaf:020}.jsonl"


def _drop_torn_line(file: BinaryIO) -> None:
    """Leaves `file` at its end, after whole lines only: we may have died in the middle of one, or the disk was full."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    if file.read(1) not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
