"""A row of the store as an event of the Open Cybersecurity Schema Framework (https://schema.ocsf.io/1.8.0).

:data:`PLACES` says where each column goes. What has no place in the event's class, or does not fit there, is kept under
``unmapped`` by its own name: an event says all that its record says.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

__all__ = ["CLASSES", "OCSF_VERSION", "PLACES", "event"]

OCSF_VERSION = "1.8.0"

Row = Mapping[str, Any]
Convert = Callable[[Any, Row], Any]
"""A column's value, and the row that it stands in, to the attribute's; None where it does not fit."""

_MAX_PORT = 65535
_MAX_STATUS = 399
_INFORMATIONAL, _MEDIUM, _HIGH = 1, 3, 4
_SUCCESS, _FAILURE = 1, 2
_ALLOWED, _DENIED = 1, 2
_UNKNOWN, _OTHER = 0, 99


@dataclass(frozen=True)
class _Class:
    """A class of events, and what of the first level we put into one."""

    uid: int
    category: int
    attributes: frozenset[str]
    profiles: tuple[str, ...]


_BASE = frozenset({"metadata", "time", "message", "status_detail", "start_time", "end_time", "count", "duration"})
_CONTROL = frozenset({"action_id", "disposition_id", "policy", "firewall_rule"})
_NETWORK = _BASE | _CONTROL | {"src_endpoint", "dst_endpoint", "traffic", "actor"}
_HTTP = _NETWORK | {"http_request", "http_response", "trace"}

CLASSES: Mapping[str, _Class] = {
    "http_activity": _Class(4002, 4, _HTTP, ("host", "security_control", "trace")),
    "network_activity": _Class(4001, 4, _NETWORK, ("host", "security_control")),
    "api_activity": _Class(
        6003, 6, _BASE | _CONTROL | {"actor", "api", "resources", "src_endpoint"}, ("security_control",)
    ),
    "application_lifecycle": _Class(6002, 6, _BASE | {"app"}, ()),
    "base_event": _Class(0, 0, _BASE, ()),
}
"""The classes in use: https://schema.ocsf.io/1.8.0/classes."""

_TRAFFIC_KINDS = ("decision", "end", "refusal", "outbound", "summary", "dropped")
_LIFECYCLE = {"genesis": 3, "close": 4, "heartbeat": _OTHER}
_METHODS = {
    "CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8, "PATCH": 9,
}  # fmt: skip
_CONNECTION_ENDS = {"end": 2, "outbound": 2, "refusal": 5}
_OPEN, _REFUSE, _TRAFFIC = 1, 5, 6
_VERBS = {"issue": 1, "query": 2, "export": 2, "exported": 2, "revoke": 4}
_UPDATES = ("configuration", "resource", "revision", "keys")
_UPDATE = 3


def event(row: Row, version: str) -> dict[str, Any]:
    """The event of `row`, by column names, as Peltast of `version` writes it."""
    name = _class_name(row)
    kind = CLASSES[name]
    made: dict[str, Any] = {"class_uid": kind.uid, "category_uid": kind.category}
    activity = _activity(name, row)
    made |= {"activity_id": activity, "type_uid": kind.uid * 100 + activity, "severity_id": _severity(row)}
    if activity == _OTHER:
        made["activity_name"] = row["method"] or row["action"] or row["kind"]
    if (status := _status(row)) is not None:
        made["status_id"] = status
    made["metadata"] = {
        "version": OCSF_VERSION,
        "product": {"name": "Peltast", "vendor_name": "Peltast", "version": version},
        "uid": f"{row['spool'].hex()}:{row['sequence']}",
        **({"profiles": list(kind.profiles)} if kind.profiles else {}),
    }
    _put_required(made, name, row)
    for column, value in row.items():
        if value is not None and column not in _NOT_TOLD and (column != "body" or row["kind"] is None):
            _put_column(made, kind, column, value, row)
    return made


def _class_name(row: Row) -> str:
    if row["kind"] in _TRAFFIC_KINDS:
        of_http = any(row[column] is not None for column in ("method", "path", "request_id", "status"))
        return "http_activity" if of_http else "network_activity"
    if row["kind"] == "act" and row["action"] is not None:
        return "api_activity"
    return "application_lifecycle" if row["kind"] in _LIFECYCLE else "base_event"


def _activity(name: str, row: Row) -> int:
    match name:
        case "http_activity":
            return _UNKNOWN if row["method"] is None else _METHODS.get(row["method"], _OTHER)
        case "network_activity":
            return _connection_activity(row)
        case "api_activity":
            return _act_activity(row["action"])
        case _:
            return _LIFECYCLE.get(row["kind"], _UNKNOWN)


def _connection_activity(row: Row) -> int:
    if row["kind"] == "decision":
        return _REFUSE if row["effect"] == "deny" else _OPEN
    return _CONNECTION_ENDS.get(row["kind"], _TRAFFIC)


def _act_activity(action: str) -> int:
    subject, _, verb = action.partition(".")
    return _VERBS.get(verb, _UPDATE if subject in _UPDATES else _OTHER)


def _severity(row: Row) -> int:
    if row["kind"] == "dropped":
        return _HIGH
    return _MEDIUM if row["effect"] == "deny" or row["kind"] == "refusal" else _INFORMATIONAL


def _status(row: Row) -> int | None:
    if row["effect"] is not None:
        return _SUCCESS if row["effect"] == "allow" else _FAILURE
    if row["status"] is not None:
        return _SUCCESS if 0 < row["status"] <= _MAX_STATUS else _FAILURE
    return None


def _put_required(made: dict[str, Any], name: str, row: Row) -> None:
    """What the class wants to be there, and a column may refine."""
    owner = row["owner"]
    if name == "http_activity" and row["status"] is None:
        made["http_request"] = {}
    if name in ("http_activity", "network_activity"):
        made["src_endpoint" if row["kind"] == "outbound" else "dst_endpoint"] = {"uid": owner}
    elif name == "api_activity":
        made["actor"] = {"user": {"uid": owner}}
        made["src_endpoint"] = {"uid": owner}
    elif name == "application_lifecycle":
        made["app"] = {"name": "Peltast", "uid": owner}


def _put_column(made: dict[str, Any], kind: _Class, column: str, value: Any, row: Row) -> None:
    kept = False
    for path, convert in PLACES.get(column, ()):
        attribute = convert(value, row) if path.partition(".")[0] in kind.attributes else None
        if attribute is not None:
            _put(made, path, attribute)
            kept = True
    if not kept or column in _ALSO_EXACTLY:
        made.setdefault("unmapped", {})[column] = value.hex() if isinstance(value, bytes) else value


def _put(made: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    inner = made
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[name] = value


# From columns to attributes -------------------------------------------------------------------------------------------


def _same(value: Any, _: Row) -> Any:
    return value


def _text(value: Any, _: Row) -> str:
    return str(value)


def _milliseconds(value: int, _: Row) -> int:
    return value // 1_000_000


def _moment(value: datetime, _: Row) -> int:
    return round(value.timestamp() * 1000)


def _original_time(value: Any, row: Row) -> str:
    """RFC 3339 with nanoseconds; where the writer's clock says a year that this cannot, the number."""
    seconds, nanoseconds = divmod(int(value), 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
    except (ValueError, OverflowError, OSError):
        return str(value)


def _action(value: str, _: Row) -> int:
    return {"allow": _ALLOWED, "deny": _DENIED}.get(value, _OTHER)


def _ip(value: str, _: Row) -> str | None:
    host, port = value.rpartition(":")[::2]
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    return str(address) if port.isdecimal() and "%" not in host else None


def _port_of(value: str, row: Row) -> int | None:
    return _port(int(value.rpartition(":")[2]), row) if _ip(value, row) is not None else None


def _port(value: int, _: Row) -> int | None:
    return value if 0 <= value <= _MAX_PORT else None


def _destination_port(value: int, row: Row) -> int | None:
    """A port of nobody is no endpoint, in OCSF; what came in, came to the owner."""
    return None if row["kind"] == "outbound" and row["destination_principal"] is None else _port(value, row)


def _method(value: str, _: Row) -> str | None:
    return value if value in _METHODS else None


def _beside_path(value: str, row: Row) -> str | None:
    """A URL without its path is none, in OCSF."""
    return value if row["path"] is not None else None


def _rule(value: int, row: Row) -> str | None:
    return f"{row['policy']}[{value}]" if row["policy"] is not None else None


def _trace_id(value: str, _: Row) -> str | None:
    """The trace's id in a ``traceparent`` (https://www.w3.org/TR/trace-context)."""
    parts = value.split("-")
    return parts[1] if len(parts) >= 4 and len(parts[1]) == 32 else None


def _headers(value: str, _: Row) -> list[dict[str, str]] | None:
    pairs = [line.partition(": ") for line in value.split("\n")]
    if not all(colon for _, colon, _ in pairs):
        return None
    return [{"name": name, "value": text} for name, _, text in pairs]


def _resource(value: str, _: Row) -> list[dict[str, str]]:
    return [{"name": value}]


def _decision(value: int, row: Row) -> str:
    return f"{row['spool'].hex()}:{value}"


PLACES: Mapping[str, tuple[tuple[str, Convert], ...]] = {
    "leaf": (("metadata.sequence", _same),),
    "owner": (("metadata.log_provider", _same),),
    "kind": (("metadata.log_name", _same),),
    "schema": (("metadata.log_version", _text),),
    "time": (("time", _moment),),
    "time_ns": (("metadata.original_time", _original_time),),
    "count": (("count", _same),),
    "since_ns": (("start_time", _milliseconds),),
    "until_ns": (("end_time", _milliseconds),),
    "source_principal": (("src_endpoint.uid", _same), ("actor.app_uid", _same)),
    "source_address": (("src_endpoint.ip", _ip), ("src_endpoint.port", _port_of)),
    "destination_principal": (("dst_endpoint.uid", _same),),
    "destination_port": (("dst_endpoint.port", _destination_port),),
    "token_issuer": (("actor.session.issuer", _same),),
    "token_subject": (("actor.user.uid", _same),),
    "method": (("http_request.http_method", _method),),
    "host": (("http_request.url.hostname", _beside_path),),
    "path": (("http_request.url.path", _same),),
    "query": (("http_request.url.query_string", _beside_path),),
    "request_headers": (("http_request.http_headers", _headers),),
    "request_id": (("http_request.uid", _same),),
    "traceparent": (("trace.uid", _trace_id),),
    "effect": (("action_id", _action), ("disposition_id", _action)),
    "status": (("http_response.code", _same),),
    "policy": (("policy.uid", _same),),
    "rule": (("firewall_rule.uid", _rule),),
    "reason": (("status_detail", _same),),
    "detail": (("message", _same),),
    "decision_sequence": (("metadata.correlation_uid", _decision),),
    "bytes_received": (("traffic.bytes_out", _same),),
    "bytes_sent": (("traffic.bytes_in", _same),),
    "duration_ns": (("duration", _milliseconds),),
    "actor": (("actor.user.uid", _same), ("src_endpoint.uid", _same)),
    "action": (("api.operation", _same),),
    "object": (("resources", _resource),),
}
"""Where columns go. OCSF counts `bytes_out` from the source to the destination: what the destination received."""

_NOT_TOLD = ("spool", "sequence", "namespace")
"""The first two are `metadata.uid`; the namespace is part of the owner. A body is told if its kind is not known."""

_ALSO_EXACTLY = ("duration_ns", "since_ns", "until_ns", "traceparent")
"""Of these the attribute says less than the column."""
