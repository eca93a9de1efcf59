"""Nothing is lost: every part is killed once under load, and every request that the application saw is on record."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections import Counter
from pathlib import Path

import asyncpg
from support.http import Connection
from support.running import CLIENT, EGRESS_PORT, RunningMesh, eventually

CLIENTS = 8
STEADY_REQUESTS = 200
"""How many answers there must be between one kill and the next."""

PARTS = {
    "envoy": ["--config-path", "sidecars/shop/server"],
    "agent": ["peltast.cli.main agent", "shop/server"],
    "collector": ["peltast.cli.main collector"],
    "postgres": ["bin/postgres -D"],
}


class Load:
    """Clients that ask as fast as they are answered, and never ask twice for one thing."""

    def __init__(self) -> None:
        self.answered = 0
        self.stopped = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())

    async def _client(self) -> None:
        while not self.stopped:
            try:
                connection = await Connection.open(CLIENT, EGRESS_PORT)
                while not self.stopped:
                    response = await connection.ask("GET", "/open", {"x-request-id": str(uuid.uuid4())})
                    self.answered += response.status == 200
                connection.close()
            except (OSError, EOFError):
                await asyncio.sleep(0.01)


async def test_every_request_that_the_application_saw_is_on_record_once(folder: Path, state: Path, seen: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        load = Load()
        running = asyncio.create_task(load.run())
        for name, words in PARTS.items():
            await _some_answers(load, name)
            killed = mesh.pid_of(*words)
            os.kill(killed, signal.SIGKILL)
            await eventually(lambda w=words, k=killed: _another(mesh, w, k), f"{name} is started again")
            await _some_answers(load, name)
        load.stopped = True
        await running
        ids = seen.read_text().split()
        assert len(ids) == len(set(ids)) > len(PARTS) * STEADY_REQUESTS
        rows = await eventually(lambda: _decisions(mesh, set(ids)), "every request seen is on record")
        assert Counter(rows[request] for request in ids) == {1: len(ids)}


async def _some_answers(load: Load, name: str) -> None:
    enough = load.answered + STEADY_REQUESTS
    await eventually(lambda: load.answered >= enough, f"requests are answered around the death of {name}")


def _another(mesh: RunningMesh, words: list[str], killed: int) -> bool:
    try:
        return mesh.pid_of(*words) != killed
    except AssertionError:
        return False


async def _decisions(mesh: RunningMesh, ids: set[str]) -> Counter[str] | None:
    """How many decision rows there are of each request, once none of `ids` is missing."""
    try:
        connection = await mesh.connect()
    except (OSError, asyncpg.CannotConnectNowError):
        return None
    try:
        rows = await connection.fetch("SELECT request_id FROM records WHERE kind = 'decision' AND effect = 'allow'")
    finally:
        await connection.close()
    found = Counter(row["request_id"] for row in rows)
    return found if ids <= found.keys() else None
