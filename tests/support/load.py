"""Load on a running mesh, and what must be on record of it afterwards."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter

import asyncpg
from support.http import Connection
from support.running import CLIENT, EGRESS_PORT, RunningMesh, eventually

CLIENTS = 8

PARTS = {
    "envoy": ["--config-path", "sidecars/shop/server"],
    "agent": ["peltast.cli.main agent", "shop/server"],
    "collector": ["peltast.cli.main collector"],
    "postgres": ["bin/postgres -D"],
}
"""The parts of a mesh that a record goes through, by words of their command lines."""


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

    async def some_answers(self, number: int, when: str) -> None:
        """Waits until `number` more requests are answered."""
        enough = self.answered + number
        await eventually(lambda: self.answered >= enough, f"requests are answered {when}")


def is_another(mesh: RunningMesh, words: list[str], killed: int) -> bool:
    """Whether the part with these words has been started again since `killed` ended."""
    try:
        return mesh.pid_of(*words) != killed
    except AssertionError:
        return False


async def decisions(mesh: RunningMesh, ids: set[str]) -> Counter[str] | None:
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
