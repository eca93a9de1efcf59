"""Records as OpenTelemetry log records (https://opentelemetry.io/docs/specs/otel/logs/data-model)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from peltast.audit.export.receiver import Entry
from peltast.audit.protos.otlp_pb2 import (
    AnyValue,
    ArrayValue,
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
    InstrumentationScope,
    KeyValue,
    KeyValueList,
    LogRecord,
    Resource,
    ResourceLogs,
    ScopeLogs,
    SeverityNumber,
)

__all__ = ["accepted", "logs_request"]

_SEVERITIES = {
    1: SeverityNumber.SEVERITY_NUMBER_INFO,
    3: SeverityNumber.SEVERITY_NUMBER_WARN,
    4: SeverityNumber.SEVERITY_NUMBER_ERROR,
}
_MAX_TIME = 2**64 - 1


def logs_request(entries: Sequence[Entry]) -> ExportLogsServiceRequest:
    """`entries` as one request, in their order."""
    version = entries[0].event["metadata"]["product"]["version"]
    resource = Resource(attributes=_pairs({"service.name": "peltast", "service.version": version}))
    scope = InstrumentationScope(name="peltast.audit", version=version)
    records = ScopeLogs(scope=scope, log_records=[_record(entry) for entry in entries])
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=resource, scope_logs=[records])])


def accepted(answer: bytes) -> str:
    """Why an answer of 200 does not say that everything was taken; empty if it does."""
    try:
        partial = ExportLogsServiceResponse.FromString(answer).partial_success
    except DecodeError:
        return "the answer is no ExportLogsServiceResponse"
    if partial.rejected_log_records:
        return f"{partial.rejected_log_records} records are rejected: {partial.error_message}"
    return ""


def _record(entry: Entry) -> LogRecord:
    row, event = entry.row, entry.event
    trace, span = _trace(row["traceparent"] or "")
    uid, leaf = event["metadata"]["uid"], row["leaf"]
    return LogRecord(
        time_unix_nano=min(int(row["time_ns"]), _MAX_TIME),
        severity_number=_SEVERITIES[event["severity_id"]],
        event_name=f"peltast.audit.{row['kind'] or 'unknown'}",
        body=_value(event),
        attributes=_pairs({"log.record.uid": uid, "peltast.leaf": leaf}),
        trace_id=trace,
        span_id=span,
    )


def _trace(traceparent: str) -> tuple[bytes, bytes]:
    """Trace and span id of a ``traceparent``; empty where it is none."""
    try:
        _, trace, span, _ = (bytes.fromhex(part) for part in traceparent.split("-"))
    except ValueError:
        return b"", b""
    return (trace, span) if (len(trace), len(span)) == (16, 8) else (b"", b"")


def _value(value: Any) -> AnyValue:
    match value:
        case Mapping():
            return AnyValue(kvlist_value=KeyValueList(values=_pairs(value)))
        case list() | tuple():
            return AnyValue(array_value=ArrayValue(values=[_value(each) for each in value]))
        case int():
            return AnyValue(int_value=value)
        case _:
            return AnyValue(string_value=value)


def _pairs(values: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in values.items()]
