"""Denials and why: what was refused, for which reason, by which policy."""

from __future__ import annotations

from peltast.audit.reports.make import Body, Kind, Reader, bars
from peltast.audit.reports.report import Column, Type

__all__ = ["DENIALS"]

_REQUESTS, _FIRST, _LAST = (
    Column("requests", Type.NUMBER),
    Column("first_seen", Type.TIME),
    Column("last_seen", Type.TIME),
)

_WHY = (
    *(Column("destination"), Column("source"), Column("reason"), Column("policy"), Column("rule", Type.NUMBER)),
    *(_REQUESTS, _FIRST, _LAST),
)

_WHY_QUERY = """
SELECT destination_principal, source_principal, reason, policy, rule, sum(number)::bigint, min(time), max(time)
FROM counted_requests
WHERE time >= $1 AND time < $2 AND effect <> 'allow'
GROUP BY 1, 2, 3, 4, 5
"""

_WHAT = (_REQUESTS, *map(Column, ("destination", "method", "host", "path", "reason")))

_WHAT_QUERY = """
SELECT sum(number)::bigint, destination_principal COLLATE "C" AS destination, method COLLATE "C" AS method,
       host COLLATE "C" AS host, path COLLATE "C" AS path, reason COLLATE "C" AS reason
FROM counted_requests
WHERE time >= $1 AND time < $2 AND effect <> 'allow' AND kind <> 'refusal'
GROUP BY 2, 3, 4, 5, 6
ORDER BY 1 DESC, 2 NULLS FIRST, 3 NULLS FIRST, 4 NULLS FIRST, 5 NULLS FIRST, 6 NULLS FIRST
LIMIT 100
"""

_CONNECTIONS = (_REQUESTS, *map(Column, ("destination", "address", "source", "reason")))

_CONNECTIONS_QUERY = """
SELECT count(*), destination_principal COLLATE "C" AS destination,
       regexp_replace(source_address, ':[0-9]+$', '') COLLATE "C" AS address, source_principal COLLATE "C" AS source,
       reason COLLATE "C" AS reason
FROM counted_requests
WHERE time >= $1 AND time < $2 AND kind = 'refusal'
GROUP BY 2, 3, 4, 5
ORDER BY 1 DESC, 2 NULLS FIRST, 3 NULLS FIRST, 4 NULLS FIRST, 5 NULLS FIRST
LIMIT 100
"""

_ENDED = (Column("destination"), Column("reason"), Column("policy"), Column("rule", Type.NUMBER), _REQUESTS, _LAST)

_ENDED_QUERY = """
SELECT owner, reason, policy, rule, count(*), max(time)
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'end' AND decision_sequence IS NOT NULL AND effect = 'deny'
GROUP BY 1, 2, 3, 4
"""

_OVER_TIME = """
SELECT floor(extract(epoch FROM time - $1) / extract(epoch FROM $3::interval))::bigint, sum(number)::bigint
FROM counted_requests
WHERE time >= $1 AND time < $2 AND effect <> 'allow'
GROUP BY 1
"""


async def _body(reader: Reader) -> Body:
    why = await reader.table("denials", "Who was denied, and why", _WHY, _WHY_QUERY)
    tables = (
        why,
        await reader.table("requests", "The 100 most frequent denied requests", _WHAT, _WHAT_QUERY, ordered=True),
        await reader.table(
            "connections", "The 100 most frequent refused connections", _CONNECTIONS, _CONNECTIONS_QUERY, ordered=True
        ),
        await reader.table("ended", "Let through, and ended by a later decision", _ENDED, _ENDED_QUERY),
    )
    charts = (
        await reader.over_time("Denials over time", ("denied",), _OVER_TIME),
        bars("Denials by reason", ("denied",), ((row[2], (row[5],)) for row in why.rows)),  # type: ignore[misc]
    )
    return Body(tables, charts)


DENIALS = Kind("denials", "Denials and why", "what was refused, for which reason, by which policy", _body)
