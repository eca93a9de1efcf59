"""Who still speaks plaintext: what stands between a mesh and STRICT everywhere."""

from __future__ import annotations

from typing import Any

import asyncpg

from peltast.audit.reports.report import Report

__all__ = ["plaintext_report"]

COLUMNS = ("source", "destination", "port", "effect", "reason", "requests", "last_seen")

_QUERY = """
SELECT regexp_replace(source_address, ':[0-9]+$', '') AS source, destination_principal AS destination,
       destination_port AS port, effect, reason, count(*) AS requests,
       to_char(max(time) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS last_seen
FROM requests
WHERE connection_security_policy = 'none' OR (kind = 'refusal' AND reason = 'plaintext')
GROUP BY 1, 2, 3, 4, 5
ORDER BY 2, 3 NULLS FIRST, 1 NULLS FIRST, 4, 5
"""


async def plaintext_report(connection: asyncpg.Connection[Any]) -> Report:
    """Counts of requests in plaintext, and of connections that were refused for it, by the caller's address."""
    rows = await connection.fetch(_QUERY)
    return Report("Plaintext", COLUMNS, tuple(tuple(row[name] for name in COLUMNS) for row in rows))
