"""A bundle service over HTTP as OPA describes it: `ETag`, and long polls."""

from __future__ import annotations

import asyncio
import re


class BundleServer:
    """Serves `content`. With `long_polls` it holds answers back that would only be 304."""

    def __init__(self, content: bytes = b"", *, long_polls: bool = False) -> None:
        self.long_polls = long_polls
        self.status = "200 OK"
        self.extra = ""
        self.silent = False
        self.requests: list[dict[str, str]] = []
        self._changed = asyncio.Event()
        self._version = 0
        self._content = content

    def serve(self, content: bytes) -> None:
        """From now on, this."""
        self._content, self._version = content, self._version + 1
        self._changed.set()

    async def __aenter__(self) -> BundleServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/bundle.tar.gz"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = {name.lower(): value for name, value in re.findall(r"^([\w-]+): (.*?)\r$", head, re.MULTILINE)}
        self.requests.append(headers)
        if self.silent:
            await reader.read()
        elif headers.get("if-none-match") == self._etag and not await self._another(headers):
            self._answer(writer, "304 Not Modified", b"")
        else:
            self._answer(writer, self.status, self._content)
        writer.close()

    @property
    def _etag(self) -> str:
        return f'"{self._version}"'

    async def _another(self, headers: dict[str, str]) -> bool:
        """Waits for another bundle, if that is wanted; tells whether there is one."""
        wanted = re.search(r"wait=(\d+)", headers.get("prefer", ""))
        if not self.long_polls or wanted is None:
            return False
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), int(wanted[1]))
        except TimeoutError:
            return False
        return True

    def _answer(self, writer: asyncio.StreamWriter, status: str, body: bytes) -> None:
        kind = "application/vnd.openpolicyagent.bundles" if self.long_polls else "application/gzip"
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\netag: {self._etag}\r\nconnection: close\r\n{self.extra}"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
