"""An application for tests that speaks first: greets every connection, then sends back what it gets.

It notes in the file SEEN a `+` for each connection and a `.` for each byte, before it answers.
"""

from __future__ import annotations

import asyncio
import os

GREETING = b"welcome\n"


class Banker(asyncio.Protocol):
    def __init__(self, seen: int) -> None:
        self.seen = seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        os.write(self.seen, b"+")
        transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        os.write(self.seen, b"." * len(data))
        self.transport.write(data)


async def main() -> None:
    host, _, port = os.environ["LISTEN"].rpartition(":")
    seen = os.open(os.environ["SEEN"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    server = await asyncio.get_running_loop().create_server(lambda: Banker(seen), host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
