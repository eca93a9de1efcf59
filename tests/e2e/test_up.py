"""`peltast up`: edits, mistakes, and the end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

from support.http import Connection, ask
from support.running import ALLOW, CLIENT, DENY, EGRESS_PORT, PELTAST, RunningMesh, eventually, is_alive

from peltast.audit.chain import verify_store
from peltast.audit.checkpoint import VerifierKey, open_checkpoint
from peltast.audit.sinks import Folder
from peltast.audit.spool import spool_folders
from peltast.cli.signing import verifier_key_file


async def status(path: str) -> int:
    return (await ask(CLIENT, EGRESS_PORT, "GET", path)).status


async def test_an_edited_file_decides_differently_and_drops_no_connection(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state):
        kept = await Connection.open(CLIENT, EGRESS_PORT)
        assert (await kept.ask("GET", "/open/closed")).status == 200
        (folder / "deny.yaml").write_text(DENY)

        async def is_denied() -> bool:
            return await status("/open/closed") == 403

        await eventually(is_denied, "the new policy decides")
        assert (await kept.ask("GET", "/open/door")).status == 200
        assert (await kept.ask("GET", "/open/closed")).status == 403
        (folder / "deny.yaml").unlink()

        async def is_allowed() -> bool:
            return await status("/open/closed") == 200

        await eventually(is_allowed, "the policy that was taken away decides no more")
        assert (await kept.ask("GET", "/open/closed")).status == 200
        kept.close()


async def test_a_broken_file_is_reported_and_the_last_good_configuration_goes_on(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        (folder / "policies.yaml").write_text(ALLOW.replace("methods:", "method:"))
        await eventually(lambda: "policies.yaml:9" in mesh.output, f"the mistake is reported: {mesh.output}")
        line = next(line for line in mesh.output.splitlines() if "policies.yaml:9" in line)
        assert "spec.rules[0].to[0].operation.method" in line
        assert "unknown field" in line
        assert "methods" in line
        assert await status("/open") == 200
        assert await status("/shut") == 403


async def test_a_sidecars_cache_can_be_looked_into(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state, "--concurrency", "1"):
        for path in ["/open/a", "/open/a", "/open/b", "/open/a", "/shut"]:
            await status(path)
        counted = await cache_of(state, "shop/server")
        assert (counted["hits"], counted["misses"], counted["entries"]) == (2, 3, 3)
        assert counted["bytes"] > 3 * 512
        assert not any(value for name, value in counted.items() if name.startswith("uncacheable"))


async def cache_of(state: Path, workload: str) -> dict[str, int]:
    command = [*PELTAST, "proxy", "cache", "--state", str(state), workload, "--output", "json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    total: dict[str, int] = json.loads(output)["total"]
    return total


TOLD = """
apiVersion: peltast.dev/v1
kind: AuditPolicy
metadata: {name: told, namespace: shop}
spec: {denials: {policyName: true}}
"""


async def test_a_denial_names_the_policy_where_an_audit_policy_allows_it(folder: Path, state: Path) -> None:
    (folder / "deny.yaml").write_text(DENY)
    async with RunningMesh(folder, state):
        problem = (await ask(CLIENT, EGRESS_PORT, "GET", "/open/closed")).json()
        assert problem["status"] == 403
        assert "policy" not in problem
        (folder / "told.yaml").write_text(TOLD)

        async def told() -> str | None:
            policy: str | None = (await ask(CLIENT, EGRESS_PORT, "GET", "/open/closed")).json().get("policy")
            return policy

        assert await eventually(told, "the denial names the policy") == "shop/closed"
        assert "policy" not in (await ask(CLIENT, EGRESS_PORT, "GET", "/shut")).json(), "no policy denied by itself"


async def test_a_denial_names_the_request_by_which_it_is_on_record(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        response = await ask(CLIENT, EGRESS_PORT, "GET", "/shut")
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert (response.status, problem["status"], problem["title"]) == (403, 403, "Forbidden")
        database = await mesh.connect()

        async def is_on_record() -> bool:
            query = "SELECT effect FROM requests WHERE request_id = $1"
            return bool(await database.fetchval(query, problem["request_id"]) == "deny")

        await eventually(is_on_record, f"the record of {problem}")
        await database.close()


async def test_records_go_on_through_segments_that_are_written_again(folder: Path, state: Path) -> None:
    requests = 400
    async with RunningMesh(folder, state, "--concurrency", "1") as mesh:
        connection = await Connection.open(CLIENT, EGRESS_PORT)
        for number in range(requests):
            assert (await connection.ask("GET", f"/open?{number}-{'x' * 40_000}")).status == 200
        connection.close()
        database = await mesh.connect()

        async def all_on_record() -> bool:
            query = "SELECT count(*) FROM requests WHERE NOT interrupted"
            return int(await database.fetchval(query)) == requests

        await eventually(all_on_record, f"{requests} requests of 40 KB, 16 MB in all, are on record")
        root = state / "sidecars/shop/server/spool"

        def one_is_written_and_one_is_spare() -> bool:
            held = [[file.suffix or file.name for file in sorted(spool.iterdir())] for spool in spool_folders(root)]
            return sorted(held) == [[".segment", "lock"], [".segment", "lock", "spare"]]

        await eventually(one_is_written_and_one_is_spare, "two files of the worker's spool, and one of the process's")
        verification = await verify_store(database)
        assert verification.sound, verification.findings
        await database.close()


async def test_everything_on_record_is_signed_and_published(folder: Path, state: Path) -> None:
    published = Folder(state / "checkpoints")
    async with RunningMesh(folder, state) as mesh:
        assert (await ask(CLIENT, EGRESS_PORT, "GET", "/open")).status == 200
        database = await mesh.connect()

        async def is_on_record() -> bool:
            return bool(await database.fetchval("SELECT count(*) FROM requests WHERE NOT interrupted"))

        async def is_published() -> bool:
            return (state / "checkpoints").exists() and bool(await published.notes())

        await eventually(is_on_record, "the request is on record")
        await eventually(is_published, "a checkpoint is published")
        size = await database.fetchval("SELECT size FROM tree")
        key = VerifierKey.parse(verifier_key_file(state).read_text())
        verification = await verify_store(database, key, {"folder": await published.notes()})
        assert verification.sound, verification.findings
        await database.close()
        mesh.process.send_signal(signal.SIGINT)
        await asyncio.wait_for(mesh.process.wait(), 5)
    *_, last = (await published.notes()).values()
    checkpoint = open_checkpoint(last, key)
    assert checkpoint.origin == "peltast.dev/audit/cluster.local"
    assert checkpoint.size >= size


async def test_ctrl_c_ends_every_process_within_five_seconds(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        processes = mesh.processes()
        assert len(processes) > 8, "PostgreSQL, control plane, collector, two agents, two Envoys, two applications"
        mesh.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        await asyncio.wait_for(mesh.process.wait(), 5)
        assert mesh.process.returncode == 0
        left = [pid for pid in processes if is_alive(pid)]
        assert not left, f"left after {time.monotonic() - started:.1f} s: {left}"


async def test_killing_it_leaves_no_process_behind(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        processes = mesh.processes()
        mesh.process.kill()
        await eventually(lambda: not any(map(is_alive, processes)), "every process is gone", 10)


async def test_a_workload_that_is_added_is_started_and_one_that_is_removed_is_ended(folder: Path, state: Path) -> None:
    added = (
        (folder / "mesh.yaml")
        .read_text()
        .replace("name: client,", "name: second,")
        .replace("workload: client", "workload: second")
        .replace("app: client", "app: second")
        .replace(CLIENT, "127.0.20.3")
    )
    second = "---\n".join([added.split("---\n")[0], added.split("---\n")[3]])
    async with RunningMesh(folder, state) as mesh:
        (folder / "second.yaml").write_text(second)

        async def answers() -> bool:
            try:
                return (await ask("127.0.20.3", EGRESS_PORT, "GET", "/open")).status == 200
            except (OSError, EOFError):
                return False

        await eventually(answers, f"the second client's sidecar takes its calls: {mesh.output}")
        (folder / "second.yaml").unlink()

        async def is_gone() -> bool:
            return not await answers()

        await eventually(is_gone, "the second client's sidecar is ended")
        assert await status("/open") == 200
