"""Load over HTTP/1.1, with or without mutual TLS: connections that ask again as soon as they are answered."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import uvloop

CONNECTIONS = 32

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Unexpected(RuntimeError):
    """An answer other than 200."""


@dataclass(frozen=True)
class Asked:
    """What is asked, where, and how."""

    port: int
    request: bytes
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    connections: int = CONNECTIONS


Ask = Callable[[float, Callable[[], float]], "Answers"]
"""Asks for so many seconds, and looks at the CPU time that is given."""


@dataclass
class _Load:
    """Those who ask, and what they were answered."""

    asked: Asked
    ends: float = 0.0
    answers: int = 0
    bodies: set[bytes] = field(default_factory=set)


def post(path: str, body: bytes, content_type: str) -> bytes:
    """A request to the byte."""
    head = f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass(frozen=True)
class Answers:
    """What came of asking."""

    number: int
    cpu_seconds: float
    bodies: set[bytes] = field(default_factory=set)


def ask_for(asked: Asked, seconds: float, cpu: Callable[[], float]) -> Answers:
    """Asks for so long. What `cpu` says is looked at once all connections are there: handshakes are not counted.

    Raises:
        Unexpected: an answer was no 200.
    """
    return uvloop.run(_ask_for(asked, seconds, cpu))


async def _ask_for(asked: Asked, seconds: float, cpu: Callable[[], float]) -> Answers:
    loop = asyncio.get_running_loop()
    load = _Load(asked)
    name = {"server_hostname": asked.server_name} if asked.tls else {}
    connections = [
        await loop.create_connection(lambda: _Connection(load), "127.0.0.1", asked.port, ssl=asked.tls, **name)
        for _ in range(asked.connections)
    ]
    before = cpu()
    load.ends = time.monotonic() + seconds
    for _, connection in connections:
        connection.ask()
    await asyncio.gather(*(connection.done for _, connection in connections))
    used = cpu() - before
    for transport, _ in connections:
        transport.close()
    return Answers(load.answers, used, load.bodies)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self._load = load
        self._received = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self) -> None:
        self._transport.write(self._load.asked.request)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or EOFError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        self._received = b""
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(Unexpected(f"{head!r} {body!r}"))
            return
        self._answered(body)

    def _answered(self, body: bytes) -> None:
        load = self._load
        load.answers += 1
        load.bodies.add(body)
        if time.monotonic() < load.ends:
            self.ask()
        else:
            self.done.set_result(None)
