"""`peltast up` with a PostgreSQL that others run: migrated, kept tidy, and on record what was done to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from support.http import ask
from support.running import CLIENT, EGRESS_PORT, PELTAST, RunningMesh, eventually
from support.store import partitions, started

from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import migrate

LONG_AGO = datetime.now(UTC).date() - timedelta(40)


@pytest.fixture
def postgres() -> Iterator[EmbeddedPostgres]:
    with started() as server:
        yield server


async def test_a_mesh_on_a_database_of_its_users_own(folder: Path, state: Path, postgres: EmbeddedPostgres) -> None:
    owner = await asyncpg.connect(postgres.url(SUPERUSER))
    await migrate(owner)
    await owner.execute("SELECT make_partition($1)", LONG_AGO)
    arguments = ("--database", postgres.url(SUPERUSER), "--retention-days", "30")
    async with RunningMesh(folder, state, *arguments) as mesh:
        assert (await ask(CLIENT, EGRESS_PORT, "GET", "/open/door")).status == 200

        async def acts() -> set[str]:
            return {
                row["action"] for row in await owner.fetch("SELECT DISTINCT action FROM records WHERE kind = 'act'")
            }

        async def is_on_record() -> bool:
            found: bool = await owner.fetchval("SELECT EXISTS (SELECT FROM requests WHERE path = '/open/door')")
            return found

        async def dropped() -> bool:
            return "partition.drop" in await acts()

        await eventually(is_on_record, "the request is on record")
        await eventually(dropped, f"the old day is dropped, and on record: {mesh.output}")
        assert len(await partitions(owner)) == 10, "those of the collector"
        days = ("--since", "2026-01-01", "--until", "2026-01-02", "--reason", "Smith v. Jones")
        await peltast("hold", "add", "case 7", *days, "--state", str(state), "--database", postgres.url(SUPERUSER))

        async def held() -> bool:
            return "hold.add" in await acts()

        await eventually(held, "the hold is on record")
        assert "embedded" not in mesh.output
        assert not (state / "postgres").exists()
        assert (state / "control" / "database.pgpass").stat().st_mode & 0o777 == 0o600
    await owner.close()


async def peltast(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(*PELTAST, "audit", *arguments)
    assert await process.wait() == 0


async def test_a_database_that_cannot_be_used_is_told_at_once(folder: Path, state: Path) -> None:
    for url, said in (
        ("postgresql://o:secret@db.example/audit", "db.example is another host; add sslmode=verify-full"),
        ("postgresql://o:secret@127.0.0.1:1/audit", "postgresql://o@127.0.0.1:1/audit: "),
    ):
        mesh = RunningMesh(folder, state, "--database", url)
        await mesh.start()
        assert await asyncio.wait_for(mesh.process.wait(), 30) == 1
        await eventually(lambda m=mesh, s=said: s in m.output, f"it is said: {mesh.output}")
        assert "secret" not in mesh.output
