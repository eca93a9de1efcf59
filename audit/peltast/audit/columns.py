"""From a record to its row: the columns of the store's ``records`` table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from peltast.authz._engine import Record

__all__ = ["COLUMNS", "MAX_BIGINT", "row"]

BYTES_FIELDS = ("spool_id", "start", "heads", "program", "keys", "revocations")
NUMBER_FIELDS = (
    "worker",
    "process_id",
    "start_index",
    "count",
    "since_ns",
    "until_ns",
    "destination_port",
    "status",
    "rule",
    "decision_sequence",
    "flags",
    "bytes_received",
    "bytes_sent",
    "duration_ns",
    "dry_run_deny_rule",
    "dry_run_allow_rule",
)
TEXT_FIELDS = (
    "source_principal",
    "source_address",
    "source_serial",
    "connection_security_policy",
    "destination_principal",
    "token_issuer",
    "token_subject",
    "method",
    "host",
    "path",
    "request_id",
    "traceparent",
    "effect",
    "policy",
    "reason",
    "decided_by",
    "detail",
    "end_details",
    "actor",
    "action",
    "object",
    "dry_run_deny",
    "dry_run_deny_policy",
    "dry_run_allow",
    "dry_run_allow_policy",
    "audit_rules",
    "query",
    "request_headers",
    "claims",
    "prints",
    "annotations",
)
_FIELDS = BYTES_FIELDS + NUMBER_FIELDS + TEXT_FIELDS
_OWN = (
    *("spool", "sequence", "leaf", "owner", "schema", "kind", "time", "time_ns"),
    *("body", "link", "mac", "redacted", "hashed"),
)

COLUMNS = _OWN + _FIELDS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_BIGINT = 2**63 - 1
_LAST_TIME_NS = 253_402_300_799 * 10**9
"""The end of the year 9999: a clock that says later is kept in `time_ns`, and shown as this."""
_MAX_PRINCIPAL_BYTES = 2048
"""Of a SPIFFE ID (SPIFFE-ID, section 2). The index on principals holds so many, but not 2704."""
_CUT_PRINCIPAL = 512
"""Characters that are left of a longer principal: no more bytes than that, whatever they are."""


def row(spool: bytes, leaf: int, owner: str, record: Record) -> tuple[Any, ...]:
    """The row of `record`, which is the tree's leaf `leaf`, in the order of :data:`COLUMNS`."""
    shown = _EPOCH + timedelta(microseconds=min(record.time_ns, _LAST_TIME_NS) // 1000)
    place = (spool, record.sequence, leaf, owner)
    states = (record.redacted or None, record.hashed or None)
    own = (record.schema, record.kind, shown, record.time_ns, record.body, record.link, record.mac, *states)
    fields = record.fields
    return place + own + tuple(_value(name, fields.get(name)) for name in _FIELDS)


def _value(name: str, value: bytes | int | None) -> bytes | str | int | None:
    """What the column holds. The record's body keeps what was there."""
    if isinstance(value, bytes):
        return value if name in BYTES_FIELDS else _text(name, value)
    return None if value is None else min(value, MAX_BIGINT)


def _text(name: str, value: bytes) -> str:
    # Postgres text takes neither bad UTF-8 nor NUL.
    text = value.decode(errors="backslashreplace").replace("\0", "\\x00")
    if name == "source_principal" and len(text.encode()) > _MAX_PRINCIPAL_BYTES:
        return f"{text[:_CUT_PRINCIPAL]}…"
    return text
