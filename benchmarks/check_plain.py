"""The check service without TLS, in a process of its own; the revision comes by standard input."""

from __future__ import annotations

import asyncio
import gc
import sys

import uvloop

from peltast.authz.check.front import CheckFront
from peltast.authz.check.http import HttpServer
from peltast.authz.check.pool import EvaluatorPool


async def serve(port: int, caller: str, revision: bytes) -> None:
    """Serves until it is killed; says on standard output that it does."""
    front = CheckFront(EvaluatorPool())
    await front.take(revision)
    gc.freeze()  # as a check worker does
    await HttpServer(front, lambda _: caller).start("127.0.0.1", port, None)
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], sys.stdin.buffer.read()))
