"""`peltast audit query` on a mesh that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from support.http import ask
from support.running import CLIENT, DENY, EGRESS_PORT, PELTAST, RunningMesh, eventually

CLIENT_ID, SERVER_ID = (f"spiffe://cluster.local/ns/shop/sa/{name}" for name in ("client", "server"))


async def query(state: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [*PELTAST, "audit", "query", "--state", str(state), "--output", "jsonl", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


async def test_what_was_done_is_found_by_who_what_when_and_why(folder: Path, state: Path) -> None:
    (folder / "deny.yaml").write_text(DENY)
    async with RunningMesh(folder, state) as mesh:
        for path in ("/open/a", "/open/b?c=d", "/open/closed", "/shut"):
            await ask(CLIENT, EGRESS_PORT, "GET", path)

        async def all_are_over() -> bool:
            return len(await query(state, "--interrupted", "false")) == 4

        await eventually(all_are_over, "four requests with their ends")
        allowed = await query(state, "--since", "1h", "--principal", CLIENT_ID, "--decision", "allow", "--code", "200")
        assert [row["path"] for row in allowed] == ["/open/b?c=d", "/open/a"]
        assert all(row["destination_principal"] == SERVER_ID for row in allowed)
        assert [row["path"] for row in await query(state, "--policy", "shop/closed")] == ["/open/closed"]
        assert [row["path"] for row in await query(state, "--reason", "no_allow_rule")] == ["/shut"]
        outbound = await query(state, "--kind", "outbound", "--principal", CLIENT_ID, "--path", "/open*")
        assert [row["status"] for row in outbound] == [403, 200, 200]
        assert {row["action"] for row in await query(state, "--kind", "acts")} > {"svid.issue", "configuration.take"}
        counted = await query(state, "--since", "1h", "--count-by", "principal,decision")
        assert counted == [
            {"source_principal": CLIENT_ID, "effect": effect, "count": 2} for effect in ("allow", "deny")
        ]
        assert await query(state, "--until", "1h") == []
        await eventually(lambda: mesh.output.count("/open/closed") == 1, "the live feed has it, too")
