"""Sends requests to the byte, without retrying any."""

from __future__ import annotations

import asyncio
import ssl
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Attempt", "Shot", "fire"]

TIMEOUT_SECONDS = 10.0
_MAX_ANSWER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Shot:
    """One request, and where it goes."""

    host: str
    port: int
    method: str = "GET"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Attempt:
    """What came of a request. Without a status, the connection was refused."""

    request_id: str
    source_address: str
    status: int | None
    body: bytes
    milliseconds: float


async def fire(shot: Shot) -> Attempt:
    """Sends `shot` over a connection of its own."""
    request_id = str(uuid.uuid4())
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(shot.host, shot.port)
    host, port = writer.get_extra_info("sockname")[:2]
    try:
        answer = await asyncio.wait_for(_exchange(shot, request_id, reader, writer), TIMEOUT_SECONDS)
    except (ConnectionError, ssl.SSLError):
        answer = b""
    finally:
        writer.close()
    elapsed = (time.perf_counter() - started) * 1000
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None
    return Attempt(request_id, f"{host}:{port}", status, answer.partition(b"\r\n\r\n")[2], elapsed)


async def _exchange(shot: Shot, request_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    if shot.tls is not None:
        await writer.start_tls(shot.tls)
    headers = {
        "host": "catalog.bookshop.svc.cluster.local",
        "x-request-id": request_id,
        "content-length": "0",
        "connection": "close",
        **shot.headers,
    }
    lines = [f"{shot.method} {shot.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while len(answer) < _MAX_ANSWER_BYTES and (more := await reader.read(_MAX_ANSWER_BYTES)):
        answer += more
    return answer
