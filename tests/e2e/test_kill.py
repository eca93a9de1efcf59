"""Nothing is lost: every part is killed once under load, and every request that the application saw is on record."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

from support.load import PARTS, Load, decisions, is_another
from support.running import RunningMesh, eventually

STEADY_REQUESTS = 200
"""How many answers there must be between one kill and the next."""


async def test_every_request_that_the_application_saw_is_on_record_once(folder: Path, state: Path, seen: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        load = Load()
        running = asyncio.create_task(load.run())
        for name, words in PARTS.items():
            await load.some_answers(STEADY_REQUESTS, f"before the death of {name}")
            killed = mesh.pid_of(*words)
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda w=words, k=killed: is_another(mesh, w, k), f"{name} is started again")
            await load.some_answers(STEADY_REQUESTS, f"after the death of {name}")
        load.stopped = True
        await running
        ids = seen.read_text().split()
        assert len(ids) == len(set(ids)) > len(PARTS) * STEADY_REQUESTS
        rows = await eventually(lambda: decisions(mesh, set(ids)), "every request seen is on record")
        assert Counter(rows[request] for request in ids) == {1: len(ids)}
