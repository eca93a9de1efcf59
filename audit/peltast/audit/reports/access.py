"""Access by identity: who was let to whom, who was not, and by which policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from peltast.audit.reports.make import Body, Kind, Reader, bars
from peltast.audit.reports.report import Cell, Column, Table, Type

__all__ = ["ACCESS"]

_COLUMNS = (
    Column("source"),
    Column("destination"),
    Column("effect"),
    Column("policy"),
    Column("rule", Type.NUMBER),
    Column("reason"),
    Column("requests", Type.NUMBER),
    Column("cached", Type.NUMBER),
)

_QUERY = """
SELECT source_principal, destination_principal, effect, policy, rule, reason, sum(number)::bigint,
       coalesce(sum(number) FILTER (WHERE decided_by = 'cache'), 0)::bigint
FROM counted_requests
WHERE time >= $1 AND time < $2
GROUP BY 1, 2, 3, 4, 5, 6
"""

_IDENTITIES = (
    Column("source"),
    Column("allowed", Type.NUMBER),
    Column("denied", Type.NUMBER),
    Column("destinations", Type.NUMBER),
)

_UNRECORDED_COLUMNS = (Column("destination"), Column("requests", Type.NUMBER))

_UNRECORDED = """
SELECT owner, sum(count)::bigint
FROM records
WHERE time >= $1 AND time < $2 AND kind = 'dropped'
GROUP BY 1
"""

_OVER_TIME = """
SELECT floor(extract(epoch FROM time - $1) / extract(epoch FROM $3::interval))::bigint,
       coalesce(sum(number) FILTER (WHERE effect = 'allow'), 0)::bigint,
       coalesce(sum(number) FILTER (WHERE effect <> 'allow'), 0)::bigint
FROM counted_requests
WHERE time >= $1 AND time < $2
GROUP BY 1
"""


async def _body(reader: Reader) -> Body:
    access = await reader.table("access", "Who was let to whom", _COLUMNS, _QUERY)
    identities = Table.of("identities", "Each identity", _IDENTITIES, _by_identity(access))
    unrecorded = await reader.table(
        "unrecorded", "Let through without a record, while spools were full", _UNRECORDED_COLUMNS, _UNRECORDED
    )
    series = ("allowed", "denied")
    counts = ((source, (allowed, denied)) for source, allowed, denied, _ in identities.rows)
    charts = (
        await reader.over_time("Requests over time", series, _OVER_TIME),
        bars("Requests by identity", series, counts),  # type: ignore[arg-type]
    )
    return Body((access, identities, unrecorded), charts)


def _by_identity(access: Table) -> Iterator[tuple[Cell, ...]]:
    """Each source with its requests and how many destinations let it in. Rows are sorted by their sources."""
    for source, rows in groupby(access.rows, key=lambda row: row[0]):
        requests: Counter[bool] = Counter()
        destinations = set()
        for _, destination, effect, _, _, _, number, _ in rows:
            assert isinstance(number, int)
            requests[effect == "allow"] += number
            destinations |= {destination} if effect == "allow" else set()
        yield source, requests[True], requests[False], len(destinations)


ACCESS = Kind("access", "Access by identity", "who was let to whom, who was not, and by which policy", _body)
