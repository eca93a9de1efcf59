"""Identities issued and refused: the SVIDs that the CA signed, and those that it did not."""

from __future__ import annotations

from peltast.audit.reports.make import Body, Kind, Reader
from peltast.audit.reports.report import Column, Type

__all__ = ["IDENTITIES"]

_SUMMARY = (
    Column("identity"),
    Column("issued", Type.NUMBER),
    Column("refused", Type.NUMBER),
    Column("first_seen", Type.TIME),
    Column("last_seen", Type.TIME),
)

_SUMMARY_QUERY = """
SELECT actor, count(*) FILTER (WHERE effect = 'allow'), count(*) FILTER (WHERE effect <> 'allow'), min(time), max(time)
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'act' AND action LIKE 'svid.%'
GROUP BY 1
"""

_ISSUED = (
    Column("time", Type.TIME),
    Column("identity"),
    Column("action"),
    Column("serial"),
    Column("detail", Type.LINES),
)

_ISSUED_QUERY = """
SELECT time, actor, action, object, detail
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'act' AND action LIKE 'svid.%' AND effect = 'allow'
ORDER BY leaf
"""

_REFUSED = (Column("time", Type.TIME), Column("identity"), Column("action"), Column("why", Type.LINES))

_REFUSED_QUERY = """
SELECT time, actor, action, detail
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'act' AND action LIKE 'svid.%' AND effect <> 'allow'
ORDER BY leaf
"""

_OVER_TIME = """
SELECT floor(extract(epoch FROM time - $1) / extract(epoch FROM $3::interval))::bigint,
       count(*) FILTER (WHERE effect = 'allow'), count(*) FILTER (WHERE effect <> 'allow')
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'act' AND action LIKE 'svid.%'
GROUP BY 1
"""


async def _body(reader: Reader) -> Body:
    tables = (
        await reader.table("identities", "Each identity", _SUMMARY, _SUMMARY_QUERY),
        await reader.table("refused", "Refused", _REFUSED, _REFUSED_QUERY, ordered=True),
        await reader.table("issued", "Issued", _ISSUED, _ISSUED_QUERY, ordered=True),
    )
    return Body(tables, (await reader.over_time("SVIDs over time", ("issued", "refused"), _OVER_TIME),))


IDENTITIES = Kind("identities", "Identities", "SVIDs that were issued, and those that were refused", _body)
