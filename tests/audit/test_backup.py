"""A backup by the tools that come with PostgreSQL, as docs/audit-store.md says, is a store whose chain verifies."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.starts import take_in
from support.store import partitions

from peltast.audit.chain import verify_store
from peltast.audit.store.auditors import Auditor, add_auditor, remove_auditor
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres, postgres_tool
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE, migrate
from peltast.audit.store.partitions import ensure_partitions

Connection = asyncpg.Connection

ROOT = Path(__file__).parents[2]
TABLES = ("records", "spools", "quarantine", "tree", "tiles", "checkpoints", "starts", "gaps", "exports",
          "legal_holds", "dropped_partitions", "dropped_records", "auditors", "migrations")  # fmt: skip


def tool(name: str, *arguments: str) -> None:
    subprocess.run([postgres_tool(name), *arguments], check=True, timeout=60)


@pytest.fixture
async def full(unpartitioned: Connection, collector: Connection, stored: Any, other_spool: Any) -> Connection:
    """A store with something in every table that a backup could lose."""
    await ensure_partitions(collector)
    other_spool.clock = time.time_ns()
    other_spool.append(path=b"/\xff\x00'; DROP TABLE records; --")
    await take_in(collector, other_spool.id, "spiffe://mesh.example/ns/payments/sa/ledger", other_spool.frames())
    for statement in (
        "INSERT INTO tiles VALUES (0, 0, decode(repeat('5a', 8192), 'hex'))",
        "INSERT INTO checkpoints (size, root, note) VALUES (6, decode(repeat('5a', 32), 'hex'), 'note')",
        "INSERT INTO starts (start, owner, statement) VALUES (decode(repeat('5a', 32), 'hex'), 'o', 's')",
        "INSERT INTO gaps (spool, since, until, reason) VALUES ('s', 1, 2, 'r')",
        "INSERT INTO legal_holds (name, since, until, reason) VALUES ('case 7', '2026-01-01', '2026-01-02', 'r')",
        "INSERT INTO dropped_partitions (day, records) VALUES ('2026-01-01', 7)",
    ):
        await unpartitioned.execute(statement)
    await add_auditor(unpartitioned, Auditor("mary", "payments"))
    return unpartitioned


@pytest.fixture
async def restored(
    postgres: EmbeddedPostgres, full: Connection, tmp_path: Path
) -> AsyncIterator[tuple[Connection, str]]:
    """What pg_restore made of what pg_dump wrote, and where it is."""
    dump = str(tmp_path / "audit.dump")
    tool("pg_dump", "--format=custom", f"--file={dump}", postgres.url(SUPERUSER))
    await full.execute("CREATE DATABASE restored")
    url = postgres.url(SUPERUSER).replace("/postgres?", "/restored?")
    try:
        tool("pg_restore", "--exit-on-error", f"--dbname={url}", dump)
        connection = await asyncpg.connect(url)
        yield connection, url
        await connection.close()
    finally:
        await full.execute("DROP DATABASE restored WITH (FORCE)")
        await remove_auditor(full, Auditor("mary", "payments"))


async def test_the_chain_verifies_after_a_restore(full: Connection, restored: tuple[Connection, str]) -> None:
    verification = await verify_store(restored[0])
    assert verification.findings == ()
    assert verification.records == (await verify_store(full)).records == 6


async def test_every_row_is_restored_and_lies_in_its_partition(
    full: Connection, restored: tuple[Connection, str]
) -> None:
    for table in TABLES:
        query = f"SELECT * FROM {table} t ORDER BY t::text"
        assert await restored[0].fetch(query) == await full.fetch(query), table
    assert await partitions(restored[0]) == await partitions(full)
    query = "SELECT tableoid::regclass::text, leaf FROM records ORDER BY leaf"
    assert await restored[0].fetch(query) == await full.fetch(query)


async def test_a_restored_store_goes_on(full: Connection, restored: tuple[Connection, str], other_spool: Any) -> None:
    """It is up to date, its roles may do what they may, and sidecars go on where they stood."""
    connection, url = restored
    assert await migrate(connection) == []
    collector = await asyncpg.connect(url.replace(f"{SUPERUSER}@", f"{COLLECTOR_ROLE}@"))
    other_spool.append(path="/next")
    await take_in(collector, other_spool.id, "spiffe://mesh.example/ns/payments/sa/ledger", other_spool.frames())
    await collector.close()
    assert (await verify_store(connection)).records == 7
    seen = {}
    for role in (AUDITOR_ROLE, "mary"):
        auditor = await asyncpg.connect(url.replace(f"{SUPERUSER}@", f"{role}@"))
        seen[role] = await auditor.fetchval("SELECT count(*) FROM records")
        with pytest.raises(asyncpg.PostgresError):
            await auditor.execute("DELETE FROM records")
        await auditor.close()
    assert seen == {AUDITOR_ROLE: 7, "mary": 3}


async def test_a_backup_that_is_older_than_what_sidecars_were_told_is_noticed(
    restored: tuple[Connection, str], collector: Connection, other_spool: Any
) -> None:
    """What was acknowledged after it is on no disk any more: the next batch does not go on from what was restored."""
    _, url = restored
    owner = "spiffe://mesh.example/ns/payments/sa/ledger"
    other_spool.append(path="/after/the/backup")
    known = len(other_spool.frames())
    await take_in(collector, other_spool.id, owner, other_spool.frames())
    other_spool.append(path="/next")
    again = await asyncpg.connect(url.replace(f"{SUPERUSER}@", f"{COLLECTOR_ROLE}@"))
    with pytest.raises(ValueError, match="record 4 follows where record 3 is due"):
        await take_in(again, other_spool.id, owner, other_spool.frames()[known:])
    await again.close()


async def test_the_documents_say_the_commands_that_are_tested() -> None:
    text = (ROOT / "docs" / "audit-store.md").read_text()
    assert "pg_dump --format=custom --file=" in text
    assert "pg_restore --exit-on-error --dbname=" in text
