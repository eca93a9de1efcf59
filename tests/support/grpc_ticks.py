"""A gRPC application whose answers do not end: any method of `ticks.Ticks` sends a message every 50 ms."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc

HOST, _, PORT = os.environ["LISTEN"].rpartition(":")


async def tick(request: bytes, context: Any) -> AsyncIterator[bytes]:
    while True:
        yield b"tick"
        await asyncio.sleep(0.05)


async def main() -> None:
    server = grpc.aio.server()
    handlers = {name: grpc.unary_stream_rpc_method_handler(tick) for name in ("Open", "Closed")}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ticks.Ticks", handlers),))
    server.add_insecure_port(f"{HOST}:{PORT}")
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
