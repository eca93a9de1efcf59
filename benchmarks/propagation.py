"""How long it takes from writing a file until every worker of a sidecar decides by it, under load."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from support.running import ALLOW, CLIENT, EGRESS_PORT, MESH, RunningMesh, eventually

EDITS = 7
WORKERS = 2
SECONDS_BETWEEN_EDITS = 2
CONNECTIONS = 8


@dataclass(frozen=True)
class Propagation:
    """Milliseconds until the last worker decided by an edit."""

    median_ms: float
    worst_ms: float


def measure_propagation() -> Propagation:
    """Edits a policy of a real mesh several times."""
    with tempfile.TemporaryDirectory(prefix="pb-") as place:
        return asyncio.run(_measure(Path(place)))


async def _measure(place: Path) -> Propagation:
    folder, state = place / "mesh", place / "s"
    folder.mkdir()
    (folder / "mesh.yaml").write_text(MESH.replace(', SEEN: "@SEEN@"', ""))
    (folder / "policies.yaml").write_text(ALLOW)
    async with RunningMesh(folder, state, "--concurrency", str(WORKERS)) as mesh:
        load = await _start_load((EDITS + 1) * SECONDS_BETWEEN_EDITS)
        written = []
        for number in range(EDITS):
            await asyncio.sleep(SECONDS_BETWEEN_EDITS)
            written.append(time.time_ns())
            (folder / "policies.yaml").write_text(ALLOW.replace("readers", f"readers-{number}"))
        await load.wait()
        decided = await eventually(lambda: _first_decisions(mesh), "every worker's decisions are on record")
    took = [(last - start) / 1e6 for start, last in zip(written, decided, strict=True)]
    return Propagation(statistics.median(took), max(took))


async def _start_load(seconds: int) -> asyncio.subprocess.Process:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", f"http://{CLIENT}:{EGRESS_PORT}/open"]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)


async def _first_decisions(mesh: RunningMesh) -> list[int] | None:
    """When the last worker decided first by each edit; none while some are not on record."""
    connection = await mesh.connect()
    rows = await connection.fetch(
        "SELECT policy, spool, min(time_ns)::bigint AS first FROM records "
        "WHERE kind = 'decision' AND policy LIKE '%readers-%' GROUP BY policy, spool"
    )
    await connection.close()
    by_edit: dict[str, list[int]] = {}
    for row in rows:
        by_edit.setdefault(row["policy"], []).append(row["first"])
    complete = len(by_edit) == EDITS and all(len(firsts) == WORKERS for firsts in by_edit.values())
    return [max(by_edit[policy]) for policy in sorted(by_edit)] if complete else None
