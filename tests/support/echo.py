"""An application for tests: listens at the addresses LISTEN, answers with what it saw, and notes the id of every
request in the file SEEN, if given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os

import httptools


class Echo(asyncio.Protocol):
    def __init__(self, seen: int | None) -> None:
        self.seen = seen
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        with contextlib.suppress(httptools.HttpParserUpgrade):  # it is answered like any other request
            self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.path = b""
        self.headers: dict[str, str] = {}
        self.body = b""

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]},{text}" if key in self.headers else text

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.seen is not None:
            # One write of a line: what is noted is noted whole, and before the answer.
            os.write(self.seen, f"{self.headers.get('x-request-id', '')}\n".encode())
        method = self.parser.get_method().decode()
        seen = {"method": method, "path": self.path.decode("latin-1"), "headers": self.headers}
        body = json.dumps({**seen, "body": self.body.decode("latin-1")}).encode()
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)  # type: ignore[attr-defined]


async def main() -> None:
    file = os.environ.get("SEEN")
    seen = os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY) if file else None
    addresses = [address.rpartition(":") for address in os.environ["LISTEN"].split(",")]
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: Echo(seen), host, int(port)) for host, _, port in addresses]
    await asyncio.gather(*(server.serve_forever() for server in servers))


asyncio.run(main())
