"""Messages over a pipe between processes of the check service: a kind, a length, and as many bytes."""

from __future__ import annotations

import asyncio
import struct
from enum import IntEnum
from typing import BinaryIO

__all__ = ["Frame", "Kind", "frame", "read_frame", "read_frame_blocking"]

_HEADER = struct.Struct(">BI")


class Kind(IntEnum):
    """What a message is."""

    REVISION = 1
    """A CheckRevision, to be decided by."""
    IN_FORCE = 2
    """The revision is decided by; nothing else is said."""
    IDENTITY = 3
    """There is a new SVID where the last one was."""
    QUESTION = 4
    """A CheckRequest."""
    SIDECAR_QUESTION = 5
    """A CheckRequest of a sidecar of ours."""
    ANSWER = 6
    """A CheckResponse."""
    NO_ANSWER = 7
    """Why there is none, for people."""
    COUNTS = 8
    """What was counted since the last such message."""


Frame = tuple[Kind, bytes]


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """One message."""
    return _HEADER.pack(kind, len(payload)) + payload


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """The next message.

    Raises:
        EOFError: the other side has ended, perhaps in the middle of a message.
    """
    kind, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
    return Kind(kind), await reader.readexactly(length)


def read_frame_blocking(file: BinaryIO) -> Frame | None:
    """The next message; none where the other side has ended."""
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    kind, length = _HEADER.unpack(header)
    return Kind(kind), file.read(length)
