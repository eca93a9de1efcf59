"""Who can call whom, by a configuration, against who did."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peltast.audit.reports.make import MAX_ROWS, Body, Kind, Reader, TooLarge, bars
from peltast.audit.reports.reach import Reach, Verdict, reaches
from peltast.audit.reports.report import Cell, Column, Table, Type

__all__ = ["MATRIX"]

_MATRIX = (
    Column("source"),
    Column("workload"),
    Column("destination"),
    Column("port", Type.NUMBER),
    Column("can"),
    Column("why", Type.LINES),
    Column("allowed", Type.NUMBER),
    Column("denied", Type.NUMBER),
    Column("finding"),
)

_OTHERS = (
    Column("source"),
    Column("destination"),
    Column("port", Type.NUMBER),
    Column("allowed", Type.NUMBER),
    Column("denied", Type.NUMBER),
)

_CALLS = """
SELECT source_principal, destination_principal, destination_port,
       coalesce(sum(number) FILTER (WHERE effect = 'allow'), 0)::bigint,
       coalesce(sum(number) FILTER (WHERE effect <> 'allow'), 0)::bigint
FROM counted_requests
WHERE time >= $1 AND time < $2
GROUP BY 1, 2, 3
"""

_NOTE = (
    "What can be is computed by the engine from the configuration {version} ({workloads} workloads). What was is "
    "counted by identity and the application's port: workloads that share an identity share their counts."
)

Key = tuple[str | None, str, int | None]


@dataclass(frozen=True)
class _Counts:
    allowed: int = 0
    denied: int = 0


async def _body(reader: Reader) -> Body:
    revision = reader.revision
    calls: dict[Key, _Counts] = {row[:3]: _Counts(*row[3:]) for row in await reader.rows(_CALLS)}
    found = _bounded(reaches(revision))
    known = {_key(reach) for reach in found}
    others = ((*key, counts.allowed, counts.denied) for key, counts in calls.items() if key not in known)
    matrix = Table.of("matrix", "Who can call whom", _MATRIX, (_row(each, calls) for each in found))
    tables = (
        matrix,
        Table.of("others", "Calls on record between whom the configuration does not know", _OTHERS, others),
    )
    note = _NOTE.format(version=revision.snapshot.version, workloads=len(revision.snapshot.workloads))
    verdicts = bars("Pairs of callers and ports", ("pairs",), ((can, (1,)) for can in matrix.column("can")))
    return Body(tables, (verdicts,), (note,))


def _bounded(found: Iterator[Reach]) -> list[Reach]:
    rows = []
    for reach in found:
        rows.append(reach)
        if len(rows) > MAX_ROWS:
            raise TooLarge(f"the matrix has over {MAX_ROWS} rows")
    return rows


def _key(reach: Reach) -> Key:
    return reach.source, reach.workload.principal, reach.port.target_port


def _row(reach: Reach, calls: dict[Key, _Counts]) -> tuple[Cell, ...]:
    counts = calls.get(_key(reach), _Counts())
    workload, port = reach.workload, reach.port.target_port
    place = (reach.source, workload.full_name, workload.principal, port)
    return (*place, reach.verdict, "\n".join(reach.why), counts.allowed, counts.denied, _finding(reach, counts))


def _finding(reach: Reach, counts: _Counts) -> str | None:
    if reach.verdict is Verdict.NEVER:
        return "did, and can no longer" if counts.allowed else None
    return None if counts.allowed else "can, and did not"


MATRIX = Kind(
    "matrix", "Who can call whom", "the effective matrix of a configuration, against who did", _body, compares=True
)
