"""Forward-only SQL migrations, each once and in order, under a lock."""

from __future__ import annotations

import importlib.resources
from typing import Any

import asyncpg

from peltast.audit.store.url import DatabaseUnusable

__all__ = ["AUDITOR_ROLE", "COLLECTOR_ROLE", "EXPORTER_ROLE", "OLDEST_VERSION", "migrate"]

COLLECTOR_ROLE, AUDITOR_ROLE = "peltast_collector", "peltast_auditor"
EXPORTER_ROLE = "peltast_exporter"

OLDEST_VERSION = 16
"""Of PostgreSQL: the first in which a member of a role can be kept from becoming it."""

_LOCK = 0x70656C74617374  # "peltast"
_FOLDER = importlib.resources.files("peltast.audit.store")
_AFTER_EVERY = ("partitions.sql", "roles.sql")


async def migrate(connection: asyncpg.Connection[Any]) -> list[str]:
    """Brings the database up to date and gives the names of the migrations that were applied.

    Raises:
        DatabaseUnusable: its PostgreSQL is too old, or its schema is newer than this Peltast.
    """
    version = connection.get_server_version()
    if version.major < OLDEST_VERSION:
        raise DatabaseUnusable(f"PostgreSQL {version.major}: {OLDEST_VERSION} or later is needed")
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute("SET LOCAL search_path = public")
        await connection.execute("CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, applied timestamptz)")
        known = {row["name"] for row in await connection.fetch("SELECT name FROM migrations")}
        files = sorted((_FOLDER / "migrations").iterdir(), key=lambda file: file.name)
        if newer := known - {file.name for file in files}:
            raise DatabaseUnusable(
                f"the database has {', '.join(sorted(newer))}: a newer Peltast migrated it; use that"
            )
        applied = [file for file in files if file.name.endswith(".sql") and file.name not in known]
        for file in applied:
            await connection.execute(file.read_text())
            await connection.execute("INSERT INTO migrations VALUES ($1, now())", file.name)
        for name in _AFTER_EVERY:
            await connection.execute((_FOLDER / name).read_text())
    return [file.name for file in applied]
