"""Acts of operators on a real mesh: who changed what, when all sidecars have it, and who exported the log."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from pathlib import Path

import asyncpg
from support.running import ALLOW, PELTAST, RunningMesh, eventually

USER = pwd.getpwuid(os.getuid()).pw_name


async def acts(connection: asyncpg.Connection, action: str) -> list[asyncpg.Record]:
    query = "SELECT actor, object, detail, effect, leaf FROM records WHERE action = $1 ORDER BY leaf"
    return await connection.fetch(query, action)


async def test_an_edit_is_on_record_with_who_and_how_and_when_every_sidecar_has_it(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        connection = await mesh.connect()

        async def live(number: int) -> list[asyncpg.Record] | None:
            found = await acts(connection, "revision.live")
            return found if len(found) >= number else None

        [first] = await eventually(lambda: live(1), "the first configuration is live")
        came = await acts(connection, "configuration.changed")
        assert len(came) == 6
        (folder / "policies.yaml").write_text(ALLOW.replace("GET", "GET, HEAD"))
        [_, second] = await eventually(lambda: live(2), "the second is")
        [change] = (await acts(connection, "configuration.changed"))[6:]
        assert (change["actor"], change["object"]) == (f"file:{USER}", "AuthorizationPolicy/shop/readers")
        assert change["detail"].startswith("--- before\n+++ after\n@@ ")
        assert [line for line in change["detail"].splitlines() if line.startswith("+ ")] == ["+        - HEAD"]
        taken = [each["object"] for each in await acts(connection, "configuration.take")]
        assert [first["object"], second["object"]] == taken
        assert second["detail"] == "2 sidecars"
        await connection.close()


async def test_an_export_is_on_record_and_what_it_sends_ends_with_its_beginning(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    (tmp_path / "siem").mkdir()
    async with RunningMesh(folder, state) as mesh:
        export = [*PELTAST, "audit", "export", "siem", "--to", f"file://{tmp_path}/siem", "--once"]
        process = await asyncio.create_subprocess_exec(*export, "--state", str(state))
        assert await process.wait() == 0
        connection = await mesh.connect()

        async def both() -> list[asyncpg.Record] | None:
            found = await acts(connection, "audit.exported")
            return found if len(found) == 2 else None

        began, ended = await eventually(both, "beginning and end are on record")
        assert (began["actor"], began["object"]) == (f"user:{USER}", "siem")
        assert began["detail"] == f"begins at record 0, to file://{tmp_path}/siem"
        lines = [line for file in (tmp_path / "siem").iterdir() for line in file.read_text().splitlines()]
        leaves = [json.loads(line)["metadata"]["sequence"] for line in lines]
        assert leaves == list(range(len(leaves)))
        assert ended["detail"] == f"ends before record {len(leaves)}"
        await connection.close()
