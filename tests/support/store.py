"""What tests ask a store."""

from __future__ import annotations

import asyncpg

__all__ = ["partitions"]


async def partitions(owner: asyncpg.Connection) -> list[str]:
    """The partitions of days."""
    found = await owner.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'records'::regclass ORDER BY 1"
    )
    return [each["name"] for each in found if each["name"] != "records_default"]
