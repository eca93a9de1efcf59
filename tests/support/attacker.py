"""A client that sends what no client should: HTTP/1.1 to the byte, and HTTP/2 with any headers."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

DEADLINE_SECONDS = 20.0

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_WHOLE_REQUEST = _END_STREAM | _END_HEADERS


@dataclass(frozen=True)
class Answer:
    """What came back: the status of each response, and what the application says in the first that it saw."""

    source_address: str
    statuses: list[int] = field(default_factory=list)
    application: dict[str, Any] | None = None
    refused: bool = False
    """Over HTTP/2: the stream was reset, or the connection ended."""


@dataclass(frozen=True)
class Target:
    """Where to send, and as whom."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None

    async def send(self, message: bytes, responses: int) -> Answer:
        """Sends `message`; reads as many responses, or what there is until the connection ends."""
        reader, writer, source = await self._connect()
        answer = Answer(source)
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                writer.write(message)
                while len(answer.statuses) < responses:
                    status, body = await _response(reader)
                    answer.statuses.append(status)
                    if status == 200:
                        answer = Answer(source, answer.statuses, answer.application or json.loads(body))
        except (EOFError, ConnectionError, ssl.SSLError):
            pass
        except TimeoutError:
            raise TimeoutError(f"{message[:200]!r}: neither an answer nor an end") from None
        finally:
            writer.close()
        return answer

    async def send_h2(self, headers: Iterable[tuple[str, str]]) -> Answer:
        """Sends one HTTP/2 request. Its status is on record: header compression is not undone here."""
        reader, writer, source = await self._connect()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                writer.write(_PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_HEADERS, _WHOLE_REQUEST, 1, _block(headers)))
                return await _h2_answer(reader, source)
        finally:
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls)
        host, port = writer.get_extra_info("sockname")[:2]
        return reader, writer, f"{host}:{port}"


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
    return int(head[0].split()[1]), await reader.readexactly(int(headers.get("content-length", 0)))


# HTTP/2 (RFC 9113) ----------------------------------------------------------------------------------------------------


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _block(headers: Iterable[tuple[str, str]]) -> bytes:
    """Headers as literals that are neither indexed nor compressed (RFC 7541 section 6.2.2)."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    assert all(len(text) < 127 for pair in pairs for text in pair), "longer texts take another form"
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


async def _h2_answer(reader: asyncio.StreamReader, source: str) -> Answer:
    body = b""
    try:
        while True:
            head = await reader.readexactly(9)
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            if kind in (_RST_STREAM, _GOAWAY):
                return Answer(source, refused=True)
            body += payload if kind == _DATA else b""
            if stream == 1 and flags & _END_STREAM:
                break
    except (EOFError, ConnectionError, ssl.SSLError):
        return Answer(source, refused=True)
    application = json.loads(body) if body.startswith(b'{"method"') else None
    return Answer(source, application=application)
