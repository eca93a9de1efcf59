"""Access by identity: who was let to whom, who was not, and by which policy."""

from __future__ import annotations

from typing import Any

import asyncpg

from peltast.audit.reports.report import Report

__all__ = ["access_report"]

COLUMNS = ("source", "destination", "effect", "policy", "rule", "reason", "requests", "cached")

_QUERY = """
SELECT source_principal AS source, destination_principal AS destination, effect, policy, rule, reason,
       count(*) AS requests, count(*) FILTER (WHERE decided_by = 'cache') AS cached
FROM requests
GROUP BY 1, 2, 3, 4, 5, 6
ORDER BY 2 NULLS FIRST, 1 NULLS FIRST, 3, 4 NULLS FIRST, 5 NULLS FIRST, 6
"""


async def access_report(connection: asyncpg.Connection[Any]) -> Report:
    """Counts of inbound requests and refused connections."""
    rows = await connection.fetch(_QUERY)
    return Report("Access by identity", COLUMNS, tuple(tuple(row[name] for name in COLUMNS) for row in rows))
