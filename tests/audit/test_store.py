from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from peltast.audit.store import migrate as migrate_module
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres, embedded_version
from peltast.audit.store.migrate import migrate
from peltast.authz._engine import grow_tree, leaf_hash

MIGRATIONS = Path(migrate_module.__file__).with_name("migrations")


@pytest.fixture
async def empty(postgres: EmbeddedPostgres, owner: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database of its own with nothing in it."""
    await owner.execute("CREATE DATABASE migrating")
    connection = await asyncpg.connect(postgres.url(SUPERUSER).replace("/postgres?", "/migrating?"))
    try:
        yield connection
    finally:
        await connection.close()
        await owner.execute("DROP DATABASE migrating")


async def test_migrating_an_empty_database_applies_everything_and_again_nothing(empty: asyncpg.Connection) -> None:
    assert await migrate(empty) == ["0001_records.sql", "0002_decisions.sql", "0003_audit_log.sql", "0004_notes.sql"]
    assert await migrate(empty) == []
    assert await empty.fetch("SELECT * FROM requests") == []


async def test_records_that_were_there_before_the_tree_are_in_it(empty: asyncpg.Connection) -> None:
    await empty.execute("CREATE TABLE migrations (name text PRIMARY KEY, applied timestamptz)")
    for name in ("0001_records.sql", "0002_decisions.sql"):
        await empty.execute((MIGRATIONS / name).read_text())
        await empty.execute("INSERT INTO migrations VALUES ($1, now())", name)
    await empty.execute(
        "INSERT INTO records (spool, sequence, owner, schema, time, time_ns, body, link, source_principal) "
        "SELECT 'of sixteen bytes', n, 'spiffe://mesh.example/ns/é', 1, now(), n, '', sha256(int8send(n)), "
        "CASE n WHEN 7 THEN $1 END FROM generate_series(1, 700) n",
        (long := secrets.token_hex(4096)),
    )
    assert await migrate(empty) == ["0003_audit_log.sql", "0004_notes.sql"]
    assert await empty.fetchval("SELECT source_principal FROM records WHERE leaf = 6") == long[:512] + "…"
    rows = await empty.fetch("SELECT spool, sequence, link, owner FROM records ORDER BY leaf")
    leaves = b"".join(leaf_hash(*row) for row in rows)
    tiles = await empty.fetch("SELECT level, number, hashes FROM tiles ORDER BY number")
    assert [tuple(tile) for tile in tiles] == [(0, 0, leaves[:8192]), (0, 1, leaves[8192:16384])]
    tree = await empty.fetchrow("SELECT size, frontier, tail FROM tree")
    assert tree is not None
    assert tuple(tree) == (700, grow_tree(0, b"", leaves), leaves[16384:])


async def test_a_migration_that_fails_changes_nothing(empty: asyncpg.Connection) -> None:
    await empty.execute("CREATE TABLE quarantine (in_the_way int)")
    with pytest.raises(asyncpg.DuplicateTableError):
        await migrate(empty)
    tables = await empty.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert [row["tablename"] for row in tables] == ["quarantine"]


async def test_the_server_listens_on_its_socket_only(postgres: EmbeddedPostgres, owner: asyncpg.Connection) -> None:
    assert await owner.fetchval("SHOW listen_addresses") == ""
    assert await owner.fetchval("SHOW unix_socket_permissions") == "0700"
    assert await owner.fetchval("SHOW server_version") == embedded_version()


async def test_preparing_a_prepared_cluster_leaves_it_alone(postgres: EmbeddedPostgres) -> None:
    await postgres.prepare()


def test_a_lock_of_a_killed_server_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text("1")
    server = EmbeddedPostgres(tmp_path, tmp_path)
    server.remove_stale_lock()
    server.remove_stale_lock()
    assert list(tmp_path.iterdir()) == []
