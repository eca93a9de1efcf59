"""Where checkpoints go besides the store, so that who can write the store cannot take them back.

A sink is named by a word: ``folder:PATH``, ``s3://BUCKET/PREFIX``, ``syslog:HOST:PORT`` (TCP) or
``syslog+tls:HOST:PORT``.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from peltast.audit.checkpoint import MAX_NOTE

if TYPE_CHECKING:
    from peltast.audit.s3 import S3

__all__ = [
    "SUFFIX",
    "TIMEOUT_SECONDS",
    "Folder",
    "Published",
    "Sink",
    "SinkFailed",
    "Source",
    "Syslog",
    "sink_of",
    "source_of",
]

SUFFIX = ".checkpoint"
TIMEOUT_SECONDS = 10.0


class SinkFailed(ConnectionError):
    """A sink did not take a checkpoint, or did not give what it has."""


@dataclass(frozen=True)
class Published:
    """A checkpoint on its way to a sink."""

    size: int
    root: bytes
    time: datetime
    note: str

    @property
    def name(self) -> str:
        """What it is called where checkpoints have names: in their order, and another one for another tree."""
        return f"{self.size:020}-{self.root.hex()[:16]}{SUFFIX}"


class Sink(Protocol):
    """Takes checkpoints. One that comes again is kept once."""

    async def put(self, checkpoint: Published) -> None:
        """Keeps `checkpoint`.

        Raises:
            SinkFailed: see there.
        """


class Source(Protocol):
    """Gives back what it was given."""

    async def notes(self) -> dict[str, str]:
        """Every note, by its name and in order.

        Raises:
            SinkFailed: see there.
        """


@dataclass(frozen=True)
class Folder:
    """A file a checkpoint. None is ever written over."""

    path: Path

    async def put(self, checkpoint: Published) -> None:
        try:
            self._put(checkpoint)
        except OSError as error:
            raise SinkFailed(f"{self.path}: {error}") from error

    def _put(self, checkpoint: Published) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path / f".{checkpoint.name}.new"
        with temporary.open("w") as file:
            file.write(checkpoint.note)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, self.path / checkpoint.name)
        temporary.unlink()

    async def notes(self) -> dict[str, str]:
        try:
            files = sorted(file for file in self.path.iterdir() if file.name.endswith(SUFFIX))
            return {file.name: _read(file) for file in files}
        except OSError as error:
            raise SinkFailed(f"{self.path}: {error}") from error


def _read(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(MAX_NOTE)


@dataclass(frozen=True)
class Syslog:
    """A message a checkpoint (RFC 5424), framed by its length (RFC 6587, section 3.4.1), over TCP or TLS (RFC 5425)."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    async def put(self, checkpoint: Published) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._send(syslog_message(checkpoint))
        except (OSError, TimeoutError) as error:
            raise SinkFailed(f"syslog {self.host}:{self.port}: {error or 'it takes too long'}") from error

    async def _send(self, message: bytes) -> None:
        _, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls)
        try:
            writer.write(b"%d %b" % (len(message), message))
            await writer.drain()
        finally:
            writer.close()
            await writer.wait_closed()


def syslog_message(checkpoint: Published) -> bytes:
    """Facility *log audit*, severity *notice*; the message is JSON, because a note has lines."""
    time = checkpoint.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    said = {"size": checkpoint.size, "root": checkpoint.root.hex(), "note": checkpoint.note}
    head = f"<109>1 {time} {socket.gethostname()} peltast {os.getpid()} checkpoint - "
    return (head + json.dumps(said)).encode()


def sink_of(word: str, environment: Mapping[str, str]) -> Sink:
    """The sink that `word` names.

    Raises:
        ValueError: it names none.
    """
    kind, _, rest = word.partition(":")
    if kind in ("syslog", "syslog+tls"):
        return _syslog(word, rest, ssl.create_default_context() if kind == "syslog+tls" else None)
    if kind in ("folder", "s3"):
        return source_of(word, environment)
    raise ValueError(
        f"{word!r} is no place for checkpoints; "
        "folder:PATH, s3://BUCKET/PREFIX, syslog:HOST:PORT and syslog+tls:HOST:PORT are"
    )


def source_of(word: str, environment: Mapping[str, str]) -> Folder | S3:
    """The sink that `word` names, which can be read.

    Raises:
        ValueError: it names none that can.
    """
    kind, _, rest = word.partition(":")
    if kind == "folder" and rest:
        return Folder(Path(rest))
    if kind == "s3":
        from peltast.audit.s3 import s3_of  # here, for its client takes longer to load than all the rest of us

        return s3_of(word, environment)
    raise ValueError(f"{word!r} is no place to read checkpoints from; folder:PATH and s3://BUCKET/PREFIX are")


def _syslog(word: str, place: str, tls: ssl.SSLContext | None) -> Syslog:
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"{word!r} does not end in HOST:PORT")
    return Syslog(host.strip("[]"), int(port), tls)
