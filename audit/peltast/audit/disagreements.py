"""Calls of which the two sidecars do not tell the same: one has none, or another status.

Each call in the mesh has two witnesses, the caller's sidecar (`outbound` records) and the called one's (`requests`).
What they have in common is found by request id, both principals, and time. The request id is the caller's to choose: it
joins records, it proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

__all__ = ["Disagreement", "disagreements"]

_QUERY = """
WITH outbound AS (
    SELECT spool, sequence, owner AS source, destination_principal AS destination, request_id, method, path, status,
        time - coalesce(duration_ns, 0) / 1000 * interval '1 microsecond' AS began, end_details
    FROM records
    WHERE kind = 'outbound' AND method IS NOT NULL AND destination_principal IS NOT NULL
        AND time >= $1::timestamptz - $3::interval AND time < $2::timestamptz + $3::interval
), inbound AS (
    SELECT spool, sequence, source_principal AS source, destination_principal AS destination, request_id, method, path,
        CASE WHEN NOT interrupted THEN status END AS status, time AS began, effect, reason
    FROM requests
    WHERE method IS NOT NULL AND source_principal IS NOT NULL
        AND time >= $1::timestamptz - $3::interval AND time < $2::timestamptz + $3::interval
), both_tell AS (
    SELECT o.spool AS outbound_spool, o.sequence AS outbound_sequence, i.spool AS inbound_spool,
        i.sequence AS inbound_sequence, i.status AS inbound_status, i.effect, i.reason,
        i.status IS NULL OR o.status IS NULL
            OR (i.status = o.status AND NOT (i.effect = 'deny' AND i.status BETWEEN 200 AND 299)) AS agree
    FROM outbound o JOIN inbound i USING (request_id, source, destination)
    WHERE i.began BETWEEN o.began - $3::interval AND o.began + $3::interval
)
SELECT 'no inbound record' AS what, began AS time, source, destination, request_id, method, path,
    spool AS outbound_spool, sequence AS outbound_sequence, status AS outbound_status,
    NULL::bytea AS inbound_spool, NULL::bigint AS inbound_sequence, NULL::bigint AS inbound_status, NULL AS effect,
    end_details AS detail
FROM outbound o
WHERE began >= $1 AND began < $2 AND NOT EXISTS (
    SELECT FROM both_tell b WHERE b.outbound_spool = o.spool AND b.outbound_sequence = o.sequence)
UNION ALL
SELECT 'no outbound record', began, source, destination, request_id, method, path,
    NULL, NULL, NULL, spool, sequence, status, effect, reason
FROM inbound i
WHERE began >= $1 AND began < $2 AND NOT EXISTS (
    SELECT FROM both_tell b WHERE b.inbound_spool = i.spool AND b.inbound_sequence = i.sequence)
UNION ALL
SELECT 'told otherwise', o.began, o.source, o.destination, o.request_id, o.method, o.path,
    o.spool, o.sequence, o.status, i.inbound_spool, i.inbound_sequence, i.inbound_status, i.effect,
    coalesce(o.end_details, i.reason)
FROM outbound o
-- Of a call that was tried again, one attempt that agrees is enough.
JOIN LATERAL (
    SELECT * FROM both_tell b WHERE b.outbound_spool = o.spool AND b.outbound_sequence = o.sequence
    ORDER BY agree DESC, inbound_sequence LIMIT 1) i ON NOT i.agree
WHERE o.began >= $1 AND o.began < $2
ORDER BY time, outbound_spool, outbound_sequence, inbound_spool, inbound_sequence
"""


@dataclass(frozen=True)
class Disagreement:
    """A call, and what each side has of it: a record as ``SPOOL:SEQUENCE``, and the status."""

    what: str
    time: datetime
    source: str
    destination: str
    request_id: str | None
    method: str
    path: str | None
    outbound: str | None
    outbound_status: int | None
    inbound: str | None
    inbound_status: int | None
    effect: str | None
    detail: str | None


async def disagreements(
    connection: asyncpg.Connection[Any], since: datetime, until: datetime, tolerance: timedelta
) -> list[Disagreement]:
    """The calls that began in the range and on which the two sides do not agree, in order of time.

    `tolerance` is how far the clocks of two sidecars may be apart. Calls of the last moments may not have come from
    both sides yet.
    """
    rows = await connection.fetch(_QUERY, since, until, tolerance)
    return [_of(row) for row in rows]


def _of(row: asyncpg.Record) -> Disagreement:
    def name(side: str) -> str | None:
        spool = row[f"{side}_spool"]
        return None if spool is None else f"{spool.hex()}:{row[f'{side}_sequence']}"

    same = ("what", "time", "source", "destination", "request_id", "method", "path")
    rest = ("outbound_status", "inbound_status", "effect", "detail")
    return Disagreement(
        **{field: row[field] for field in (*same, *rest)}, outbound=name("outbound"), inbound=name("inbound")
    )
