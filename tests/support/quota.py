"""`peltast quota serve`, as a process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support.running import PELTAST, eventually


@asynccontextmanager
async def served(*arguments: object, **environment: str) -> AsyncIterator[list[str]]:
    """What `peltast quota serve` says, until it is told to end, which it does in good order."""
    process = await asyncio.create_subprocess_exec(
        *(*PELTAST, "quota", "serve", *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **environment},
    )
    said: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said.append(line.decode())

    reading = asyncio.create_task(read())
    try:
        await eventually(lambda: any("Serving at" in line for line in said) or process.returncode, "it serves")
        assert process.returncode is None, said
        yield said
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0, said
    finally:
        if process.returncode is None:
            process.kill()
        await reading
