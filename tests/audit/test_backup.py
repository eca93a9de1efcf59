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
from support.store import SIGNER, partitions, sign_as_collector

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
def ledger(stored: Any) -> Any:
    """A spool of another namespace."""
    return type(stored)(stored.root, stored.usage, "spiffe://mesh.example/ns/payments/sa/ledger")


@pytest.fixture
async def full(
    postgres: EmbeddedPostgres, unpartitioned: Connection, collector: Connection, stored: Any, ledger: Any
) -> Connection:
    """A store with something in every table that a backup could lose: 300 records, signed."""
    await ensure_partitions(collector)
    ledger.clock = time.time_ns()
    ledger.append(path=b"/\xff\x00'; DROP TABLE records; --")
    await take_in(collector, ledger.id, ledger.owner, ledger.frames())
    for _ in range(294):
        stored.append(path="/more")
    await take_in(collector, stored.id, stored.owner, stored.frames())
    await sign_as_collector(postgres)
    for statement in (
        "INSERT INTO gaps (spool, since, until, reason) VALUES ('s', 1, 2, 'r')",
        "INSERT INTO legal_holds (name, since, until, reason) VALUES ('case 7', '2026-01-01', '2026-01-02', 'r')",
        "INSERT INTO dropped_partitions (day, records) VALUES ('2026-01-01', 0)",
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
    verification = await verify_store(restored[0], SIGNER.verifier_key)
    assert verification == await verify_store(full, SIGNER.verifier_key)
    assert verification.findings == ()
    assert (verification.records, verification.checkpoints) == (300, 1)


async def test_every_row_is_restored_and_lies_in_its_partition(
    full: Connection, restored: tuple[Connection, str]
) -> None:
    for table in TABLES:
        query = f"SELECT * FROM {table} t ORDER BY t::text"
        assert await restored[0].fetch(query) == await full.fetch(query), table
    assert await partitions(restored[0]) == await partitions(full)
    query = "SELECT tableoid::regclass::text, leaf FROM records ORDER BY leaf"
    assert await restored[0].fetch(query) == await full.fetch(query)


async def test_a_restored_store_goes_on(full: Connection, restored: tuple[Connection, str], ledger: Any) -> None:
    """It is up to date, its roles may do what they may, and sidecars go on where they stood."""
    connection, url = restored
    assert await migrate(connection) == []
    collector = await asyncpg.connect(url.replace(f"{SUPERUSER}@", f"{COLLECTOR_ROLE}@"))
    ledger.append(path="/next")
    await take_in(collector, ledger.id, ledger.owner, ledger.frames())
    await collector.close()
    verification = await verify_store(connection, SIGNER.verifier_key)
    assert (verification.records, verification.findings) == (301, ())
    seen = {}
    for role in (AUDITOR_ROLE, "mary"):
        auditor = await asyncpg.connect(url.replace(f"{SUPERUSER}@", f"{role}@"))
        seen[role] = await auditor.fetchval("SELECT count(*) FROM records")
        with pytest.raises(asyncpg.PostgresError):
            await auditor.execute("DELETE FROM records")
        await auditor.close()
    assert seen == {AUDITOR_ROLE: 301, "mary": 3}


async def test_a_backup_that_is_older_than_what_sidecars_were_told_is_noticed(
    restored: tuple[Connection, str], collector: Connection, ledger: Any
) -> None:
    """What was acknowledged after it is on no disk any more: the next batch does not go on from what was restored."""
    _, url = restored
    ledger.append(path="/after/the/backup")
    known = len(ledger.frames())
    await take_in(collector, ledger.id, ledger.owner, ledger.frames())
    ledger.append(path="/next")
    again = await asyncpg.connect(url.replace(f"{SUPERUSER}@", f"{COLLECTOR_ROLE}@"))
    with pytest.raises(ValueError, match="record 4 follows where record 3 is due"):
        await take_in(again, ledger.id, ledger.owner, ledger.frames()[known:])
    await again.close()


async def test_the_documents_say_the_commands_that_are_tested() -> None:
    text = (ROOT / "docs" / "audit-store.md").read_text()
    assert "pg_dump --format=custom --file=" in text
    assert "pg_restore --exit-on-error --dbname=" in text
