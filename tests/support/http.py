"""HTTP/1.1 to the byte over one connection, which is kept."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection. Responses must have a content-length, or end the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.asked = 0

    @classmethod
    async def open(cls, host: str, port: int, tls: ssl.SSLContext | None = None) -> Connection:
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=1 << 20)
        return cls(reader, writer)

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Response:
        self._writer.write(_head(method, path, {"content-length": str(len(body)), **(headers or {})}) + body)
        self.asked += 1
        return await asyncio.wait_for(self._response(method), 15)

    async def ask_in_pieces(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, size: int
    ) -> Response:
        """Sends `body` chunked, in pieces of `size` bytes, each flushed by itself."""
        self._writer.write(_head(method, path, {"transfer-encoding": "chunked", **headers}))
        self.asked += 1
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            self._writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await self._writer.drain()
            await asyncio.sleep(0)
        self._writer.write(b"0\r\n\r\n")
        return await asyncio.wait_for(self._response(method), 15)

    async def _response(self, method: str) -> Response:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
        body = await self._reader.readexactly(length)
        return Response(int(head[0].split()[1]), headers, body)

    @property
    def ended(self) -> bool:
        return self._reader.at_eof()

    def close(self) -> None:
        self._writer.close()


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{name}: {value}" for name, value in {"host": "server.shop.svc.cluster.local", **headers}.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


async def ask(
    host: str, port: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> Response:
    """One request over a connection of its own."""
    connection = await Connection.open(host, port)
    try:
        return await connection.ask(method, path, headers, body)
    finally:
        connection.close()
