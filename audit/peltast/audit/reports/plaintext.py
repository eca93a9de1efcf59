"""Who still speaks plaintext: what stands between a mesh and STRICT everywhere."""

from __future__ import annotations

from peltast.audit.reports.make import Body, Kind, Reader, bars
from peltast.audit.reports.report import Column, Type

__all__ = ["PLAINTEXT"]

_COLUMNS = (
    Column("destination"),
    Column("port", Type.NUMBER),
    Column("source"),
    Column("effect"),
    Column("reason"),
    Column("requests", Type.NUMBER),
    Column("last_seen", Type.TIME),
)

_QUERY = """
SELECT destination_principal, destination_port, regexp_replace(source_address, ':[0-9]+$', ''), effect, reason,
       sum(number)::bigint, max(time)
FROM counted_requests
WHERE time >= $1 AND time < $2
  AND (connection_security_policy = 'none' OR (kind = 'refusal' AND reason = 'plaintext'))
GROUP BY 1, 2, 3, 4, 5
"""


async def _body(reader: Reader) -> Body:
    table = await reader.table("plaintext", "Plaintext, by the caller's address", _COLUMNS, _QUERY)
    counts = ((row[2], (row[5], 0) if row[3] == "allow" else (0, row[5])) for row in table.rows)
    return Body((table,), (bars("Plaintext by caller", ("allowed", "denied"), counts),))  # type: ignore[arg-type]


PLAINTEXT = Kind("plaintext", "Plaintext", "who still speaks plaintext, and who was refused for it", _body)
