"""A control mapping: what of each control the log shows, by which query, and what it counts.

PCI DSS 4.0 (https://www.pcisecuritystandards.org), the AICPA's Trust Services Criteria of 2017 (SOC 2), NIST SP 800-53
revision 5. A count is evidence of the control, not compliance with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from peltast.audit.reports.make import Body, Kind, Reader
from peltast.audit.reports.report import Column, Table, Type

__all__ = ["CONTROLS", "CONTROL_ROWS", "Control"]

_COLUMNS = (
    Column("framework"),
    Column("control"),
    Column("shown"),
    Column("query", Type.LINES),
    Column("count", Type.NUMBER),
)

_PCI, _SOC, _NIST = "PCI DSS 4.0", "SOC 2", "NIST SP 800-53"

_RANGE = "time >= $1 AND time < $2"


@dataclass(frozen=True)
class Control:
    """A row of the mapping. In `query`, $1 and $2 are the range; it gives one number."""

    framework: str
    control: str
    shown: str
    query: str


def _requests(condition: str = "") -> str:
    return f"SELECT coalesce(sum(number), 0)::bigint FROM counted_requests WHERE {_RANGE}{condition}"  # noqa: S608


def _records(condition: str = "", counted: str = "count(*)") -> str:
    return f"SELECT {counted} FROM records WHERE {_RANGE}{condition}"  # noqa: S608


def _table(name: str, column: str) -> str:
    return f"SELECT count(*) FROM {name} WHERE {column} >= $1 AND {column} < $2"  # noqa: S608


_ACCESS = _requests()
_ALLOWED_BY_IDENTITY = _requests(" AND effect = 'allow' AND source_principal IS NOT NULL")
_DENIED = _requests(" AND effect = 'deny'")
_REFUSED = _records(" AND kind = 'refusal'")
_ACTS = _records(" AND kind = 'act'")
_ISSUED = _records(" AND kind = 'act' AND action LIKE 'svid.%' AND effect = 'allow'")
_IDENTITY_ACTS = _records(
    " AND kind = 'act' AND (action LIKE 'svid.%' OR action LIKE 'token.%' OR action LIKE 'keys.%')"
)
_CHANGES = _records(" AND kind = 'act' AND action = 'configuration.changed'")
_CONFIGURATION = _records(" AND kind = 'act' AND action LIKE 'configuration.%'")
_STARTS_AND_STOPS = _records(" AND kind IN ('genesis', 'close')")
_INCOMPLETE = _records(" AND kind = 'decision' AND (destination_principal IS NULL OR effect IS NULL OR reason IS NULL)")
_CHECKPOINTS = _table("checkpoints", "time")
_QUARANTINE = _table("quarantine", "received")
_GAPS = _table("gaps", "noticed")
_SIGNED_STARTS = _table("starts", "received")
_DAYS = _records(counted="count(DISTINCT date_trunc('day', time, 'UTC'))")
_BACKWARDS = (
    "SELECT count(*) FROM (SELECT time_ns < lag(time_ns) OVER (PARTITION BY spool ORDER BY sequence) AS back "  # noqa: S608
    f"FROM records WHERE {_RANGE}) AS clocks WHERE back"
)
_PLAINTEXT = _requests(" AND effect = 'allow' AND connection_security_policy = 'none'")
_FULL = _requests(" AND reason = 'spool_unavailable'")
_DROPPED = _records(" AND kind = 'dropped'", "coalesce(sum(count), 0)::bigint")
_REVOKED = _records(" AND kind = 'act' AND action = 'token.revoke' AND effect = 'allow'")
_FAILED_OPEN = _requests(" AND decided_by = 'failed-open'")

CONTROL_ROWS = (
    Control(_PCI, "10.2.1.1", "requests by an identity that were let in", _ALLOWED_BY_IDENTITY),
    Control(_PCI, "10.2.1.2", "acts of the control plane and its operators", _ACTS),
    Control(_PCI, "10.2.1.4", "access that was denied", _DENIED),
    Control(_PCI, "10.2.1.5", "acts on identities, tokens and keys", _IDENTITY_ACTS),
    Control(_PCI, "10.2.1.6", "logs that were begun and closed", _STARTS_AND_STOPS),
    Control(_PCI, "10.2.1.7", "resources that were made, changed and removed", _CHANGES),
    Control(_PCI, "10.2.2", "decisions that lack destination, effect or reason (none is expected)", _INCOMPLETE),
    Control(_PCI, "10.3.2", "batches that contradicted the log, and were kept aside", _QUARANTINE),
    Control(_PCI, "10.3.4", "signed checkpoints of the log", _CHECKPOINTS),
    Control(_PCI, "10.5.1", "days with records", _DAYS),
    Control(_PCI, "10.6.1", "records whose clock was set back", _BACKWARDS),
    Control(_PCI, "10.7.2", "gaps in the log that were noticed", _GAPS),
    Control(_SOC, "CC6.1", "requests and connections that were decided", _ACCESS),
    Control(_SOC, "CC6.2", "identities that were issued", _ISSUED),
    Control(_SOC, "CC6.3", "resources that were made, changed and removed", _CHANGES),
    Control(_SOC, "CC6.6", "connections that were refused before any request", _REFUSED),
    Control(_SOC, "CC6.7", "requests that were let in in plaintext", _PLAINTEXT),
    Control(_SOC, "CC7.1", "configurations taken, refused and changed", _CONFIGURATION),
    Control(_SOC, "CC7.2", "access that was denied", _DENIED),
    Control(_SOC, "CC7.3", "requests let in because a policy failed and says so", _FAILED_OPEN),
    Control(_SOC, "CC7.4", "tokens that operators revoked", _REVOKED),
    Control(_NIST, "AU-2", "requests and connections that were decided", _ACCESS),
    Control(_NIST, "AU-3", "decisions that lack destination, effect or reason (none is expected)", _INCOMPLETE),
    Control(_NIST, "AU-4", "requests denied because there was no room for their records", _FULL),
    Control(_NIST, "AU-5", "requests let through without a record, as the AuditPolicy allows", _DROPPED),
    Control(_NIST, "AU-6", "access that was denied", _DENIED),
    Control(_NIST, "AU-8", "records whose clock was set back", _BACKWARDS),
    Control(_NIST, "AU-9", "signed checkpoints of the log", _CHECKPOINTS),
    Control(_NIST, "AU-10", "signed statements by which logs were begun", _SIGNED_STARTS),
    Control(_NIST, "AU-11", "days with records", _DAYS),
    Control(_NIST, "AU-12", "records", _records()),
)

_NOTE = "A count is evidence of a control, not compliance with it. Reading the log (PCI DSS 10.2.1.3) is not in it."


async def _body(reader: Reader) -> Body:
    counts = {query: (await reader.rows(query))[0][0] for query in {row.query for row in CONTROL_ROWS}}
    rows = ((row.framework, row.control, row.shown, row.query, counts[row.query]) for row in CONTROL_ROWS)
    return Body((Table.of("controls", "Controls", _COLUMNS, rows, ordered=True),), notes=(_NOTE,))


CONTROLS = Kind(
    "controls", "Control mapping", "PCI DSS 10, SOC 2 CC6 and CC7, NIST 800-53 AU: queries and counts", _body
)
