"""Nothing is lost, whatever happens to the parts that a record goes through, in whatever order, under load.

A minute in `make test`, ten in `make soak`. The order is random; PELTAST_CHAOS_SEED repeats that of a run that failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from support.load import PARTS, Load, decisions, is_another
from support.running import BASE_PORT, RunningMesh, eventually

from peltast.audit.chain import verify_store

SECONDS = 600 if os.environ.get("PELTAST_EXAMPLES") == "other" else 60
SEED = int(os.environ.get("PELTAST_CHAOS_SEED", time.time_ns() % 1_000_000))

STEADY_REQUESTS = 50
CATCH_UP_SECONDS = 120.0
COLLECTOR_PORT = BASE_PORT + 4

Fault = Callable[[RunningMesh, str, random.Random], Awaitable[None]]


async def kill(mesh: RunningMesh, part: str, _: random.Random) -> None:
    await _end(mesh, part, signal.SIGKILL)


async def restart(mesh: RunningMesh, part: str, _: random.Random) -> None:
    # PostgreSQL waits for its clients to go when it is told to terminate.
    await _end(mesh, part, signal.SIGINT if part == "postgres" else signal.SIGTERM)


async def _end(mesh: RunningMesh, part: str, how: signal.Signals) -> None:
    pid = mesh.pid_of(*PARTS[part])
    os.kill(pid, how)
    await eventually(lambda: is_another(mesh, PARTS[part], pid), f"{part} is started again")


async def freeze(mesh: RunningMesh, part: str, chance: random.Random) -> None:
    with _stopped(mesh.pid_of(*PARTS[part])):
        await asyncio.sleep(chance.uniform(0.2, 2.0))


async def slow(mesh: RunningMesh, part: str, chance: random.Random) -> None:
    """It gets a tenth of the time."""
    pid = mesh.pid_of(*PARTS[part])
    for _ in range(chance.randrange(5, 20)):
        with _stopped(pid):
            await asyncio.sleep(0.09)
        await asyncio.sleep(0.01)


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def disconnect(_: RunningMesh, __: str, chance: random.Random) -> None:
    """Whoever ships is cut off from the collector, again and again."""
    for _ in range(chance.randrange(1, 30)):
        subprocess.run(["ss", "--kill", "--tcp", "dport", "=", str(COLLECTOR_PORT)], check=True, capture_output=True)
        await asyncio.sleep(0.1)


def _faults() -> list[Fault]:
    can_disconnect = os.geteuid() == 0 and shutil.which("ss") is not None
    return [kill, restart, freeze, slow, *([disconnect] if can_disconnect else [])]


async def test_every_request_is_on_record_once_and_in_order(folder: Path, state: Path, seen: Path) -> None:
    chance = random.Random(SEED)
    done: Counter[str] = Counter()
    print(f"PELTAST_CHAOS_SEED={SEED}")
    async with RunningMesh(folder, state) as mesh:
        load = Load()
        running = asyncio.create_task(load.run())
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends:
            fault, part = chance.choice(_faults()), chance.choice(list(PARTS))
            print(f"{fault.__name__} {part}", flush=True)
            await fault(mesh, part, chance)
            await load.some_answers(STEADY_REQUESTS, f"after: {fault.__name__} {part}")
            done[fault.__name__] += 1
        load.stopped = True
        await running
        ids = seen.read_text().split()
        print(f"{sum(done.values())} faults {dict(done)}, {len(ids)} requests seen by the application")
        assert len(ids) == len(set(ids)) >= load.answered > 0
        found = await eventually(lambda: decisions(mesh, set(ids)), "every request is on record", CATCH_UP_SECONDS)
        assert Counter(found[request] for request in ids) == {1: len(ids)}
        await _expect_whole_spools(mesh)


async def _expect_whole_spools(mesh: RunningMesh) -> None:
    """Every spool is stored from its first record to its last, in order, and its chain holds."""
    connection = await mesh.connect()
    try:
        spools = await connection.fetch(
            "SELECT spool, count(*), min(sequence), max(sequence) FROM records GROUP BY spool ORDER BY spool"
        )
        assert all(row["min"] == 1 and row["max"] == row["count"] for row in spools)
        assert (await verify_store(connection)).findings == ()
        leaves = await connection.fetchrow("SELECT count(*), min(leaf), max(leaf) FROM records")
        assert leaves is not None
        assert (leaves["min"], leaves["max"]) == (0, leaves["count"] - 1)
        assert await connection.fetchval("SELECT count(*) FROM quarantine") == 0
    finally:
        await connection.close()
