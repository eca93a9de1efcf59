"""Configuration changes: who changed what, with the difference, and which configurations were in force."""

from __future__ import annotations

from peltast.audit.reports.make import Body, Kind, Reader, bars
from peltast.audit.reports.report import Column, Type

__all__ = ["CONFIGURATION"]

_CHANGES = (Column("time", Type.TIME), Column("who"), Column("what"), Column("difference", Type.LINES))

_CHANGES_QUERY = """
SELECT time, actor, object, detail
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'act' AND action = 'configuration.changed'
ORDER BY leaf
"""

_VERSIONS = (
    Column("time", Type.TIME),
    Column("action"),
    Column("version"),
    Column("by"),
    Column("detail", Type.LINES),
)

_VERSIONS_QUERY = """
SELECT time, action, object, actor, detail
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'act' AND action IN ('configuration.take', 'configuration.refuse')
ORDER BY leaf
"""


async def _body(reader: Reader) -> Body:
    changes = await reader.table("changes", "What was changed", _CHANGES, _CHANGES_QUERY, ordered=True)
    versions = await reader.table("versions", "Taken and refused", _VERSIONS, _VERSIONS_QUERY, ordered=True)
    chart = bars("Changes by who made them", ("changes",), ((who, (1,)) for who in changes.column("who")))
    return Body((changes, versions), (chart,))


CONFIGURATION = Kind("configuration", "Configuration changes", "who changed what, with the difference", _body)
