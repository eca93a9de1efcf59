"""A table of a report in Apache Parquet."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from peltast.audit.reports.report import Report, Table, Type, time_text

__all__ = ["to_parquet"]

_TYPES = {
    Type.TEXT: pa.string(),
    Type.LINES: pa.string(),
    Type.NUMBER: pa.int64(),
    Type.TIME: pa.timestamp("us", tz="UTC"),
}


def to_parquet(report: Report, table: Table) -> bytes:
    """The rows of `table`, with what `report` says of itself as the file's metadata (keys ``peltast.…``).

    The same bytes for the same report, by one version of pyarrow.
    """
    fields = [pa.field(column.name, _TYPES[column.type]) for column in table.columns]
    schema = pa.schema(fields, metadata=_metadata(report, table))
    arrays = [pa.array([row[place] for row in table.rows], type=field.type) for place, field in enumerate(fields)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(arrays, schema=schema), sink, compression="zstd")
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _metadata(report: Report, table: Table) -> dict[str, str]:
    return {
        "peltast.report": report.name,
        "peltast.table": table.name,
        "peltast.since": time_text(report.span.since),
        "peltast.until": time_text(report.span.until),
        "peltast.rests_on": report.rests_on,
        "peltast.notes": "\n".join(report.notes),
    }
