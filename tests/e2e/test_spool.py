"""What becomes of requests and records while nothing can be shipped."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http import Connection
from support.running import CLIENT, EGRESS_PORT, RunningMesh, command_line, eventually

from peltast.audit.chain import verify_store

SPOOL_BYTES = 16 << 20
PATH_BYTES = 40_000
FILLING = SPOOL_BYTES // PATH_BYTES + 20

DROP = """
apiVersion: peltast.dev/v1
kind: AuditPolicy
metadata: {name: lossy, namespace: istio-system}
spec: {onSpoolFull: drop, durability: machine, syncInterval: 100ms}
"""


@contextlib.contextmanager
def frozen(mesh: RunningMesh, *words: str) -> Iterator[None]:
    """Stops all processes whose command line has one of `words`."""
    pids = [pid for pid in mesh.processes() if any(word in command_line(pid) for word in words)]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def ask_until_full(number: int) -> list[int]:
    """The statuses of `number` requests whose records are long."""
    connection = await Connection.open(CLIENT, EGRESS_PORT)
    path = f"/open?{'x' * PATH_BYTES}"
    statuses = [(await connection.ask("GET", path, {"x-request-id": str(uuid.uuid4())})).status for _ in range(number)]
    connection.close()
    return statuses


async def decided(mesh: RunningMesh) -> int:
    database = await mesh.connect()
    try:
        query = "SELECT count(*) FROM requests WHERE effect = 'allow' AND kind = 'decision'"
        return int(await database.fetchval(query))
    finally:
        await database.close()


@pytest.mark.parametrize("policy", [pytest.param("", id="deny"), pytest.param(DROP, id="drop")])
async def test_a_full_spool_denies_or_drops_as_the_policy_says(
    folder: Path, state: Path, seen: Path, policy: str
) -> None:
    (folder / "audit.yaml").write_text(policy)
    arguments = ("--spool-bytes", str(SPOOL_BYTES), "--concurrency", "1")
    async with RunningMesh(folder, state, *arguments) as mesh:
        with frozen(mesh, "postgres"):
            statuses = await ask_until_full(FILLING)
        let_in = statuses.count(200)
        assert len(seen.read_text().split()) == let_in
        if policy:
            assert statuses == [200] * FILLING
        else:
            assert statuses == [200] * let_in + [503] * (FILLING - let_in)
            assert FILLING - let_in >= 10
        database = await mesh.connect()

        async def all_are_accounted_for() -> bool:
            dropped = await database.fetchval("SELECT sum(count) FROM records WHERE kind = 'dropped'")
            assert policy or dropped is None
            return bool(await decided(mesh) + (dropped or 0) == let_in) and (not policy or bool(dropped))

        await eventually(all_are_accounted_for, f"{let_in} requests are recorded or counted")
        told = await database.fetch("SELECT count, since_ns, until_ns FROM records WHERE kind = 'dropped'")
        assert all(row["since_ns"] < row["until_ns"] for row in told)

        async def is_answered() -> bool:
            return (await ask_until_full(1)) == [200]

        await eventually(is_answered, "there is room again")
        assert (await verify_store(database)).sound
        await database.close()


async def test_envoy_and_its_agent_start_again_while_the_collector_is_away(
    folder: Path, state: Path, seen: Path
) -> None:
    async with RunningMesh(folder, state, "--concurrency", "1") as mesh:

        async def is_answered() -> bool:
            with contextlib.suppress(OSError, EOFError):
                return (await ask_until_full(1)) == [200]
            return False

        await eventually(is_answered, "a request is answered")
        with frozen(mesh, "peltast.cli.main collector", "postgres"):
            for words in (["--config-path", "sidecars/shop/server"], ["peltast.cli.main agent", "shop/server"]):
                killed = mesh.pid_of(*words)
                os.kill(killed, signal.SIGKILL)
                await eventually(lambda k=killed: k not in mesh.processes(), "it is gone")
                await eventually(is_answered, f"requests are answered after the end of {words}")
        requests = len(seen.read_text().split())
        assert requests >= 3

        async def all_on_record() -> bool:
            return await decided(mesh) == requests

        await eventually(all_on_record, f"{requests} requests are on record")
        database = await mesh.connect()
        owner = "spiffe://cluster.local/ns/shop/sa/server"
        starts = await database.fetch("SELECT start, previous FROM starts WHERE owner = $1 ORDER BY received", owner)
        assert len(starts) >= 3
        known = {row["start"] for row in starts}
        assert [row["previous"] in known for row in starts].count(False) == 1, "each names the one before"
        assert (await verify_store(database)).sound
        await database.close()


async def test_what_ends_in_order_is_closed(folder: Path, state: Path) -> None:
    """A sidecar's Envoy is ended in order, and started again; then its spools of before are closed."""
    async with RunningMesh(folder, state, "--concurrency", "1") as mesh:
        assert (await ask_until_full(1)) == [200]
        database = await mesh.connect()

        async def closed() -> list[bool]:
            first = "SELECT start FROM starts WHERE owner = $1 ORDER BY received LIMIT 1"
            query = f"SELECT closed FROM spools WHERE owner = $1 AND start = ({first})"
            return [row["closed"] for row in await database.fetch(query, "spiffe://cluster.local/ns/shop/sa/server")]

        async def both_are_open() -> bool:
            return await closed() == [False, False]

        async def both_are_closed() -> bool:
            return await closed() == [True, True]

        await eventually(both_are_open, "there are the worker's spool and the process's")
        os.kill(mesh.pid_of("--config-path", "sidecars/shop/server"), signal.SIGTERM)
        await eventually(both_are_closed, "they are closed")
        await database.close()
