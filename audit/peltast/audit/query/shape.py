"""What each kind of question is about: which records, which columns they have, and what they can be asked by.

Everything here is SQL of our own. What comes from outside picks from it by name, and is never a part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ENDED", "SHAPES", "SYNONYMS", "Kind", "Shape"]


class Kind(StrEnum):
    """What is asked for."""

    REQUESTS = "requests"
    REFUSALS = "refusals"
    OUTBOUND = "outbound"
    ACTS = "acts"
    EVENTS = "events"


@dataclass(frozen=True)
class Shape:
    """A kind of question. `first` is the record; `ended` the end of a request, if there is one."""

    where: str
    columns: Mapping[str, str]
    shown: tuple[str, ...]
    filters: Mapping[str, str]

    @property
    def recorded(self) -> tuple[str, ...]:
        """Every column but those that are made for counts."""
        return tuple(name for name in self.columns if name not in _TIMES)

    def needs_end(self, column: str) -> bool:
        """Whether `column` is known only when a request is over."""
        return "ended." in self.columns[column]


ENDED = ("sequence", "status", "bytes_received", "bytes_sent", "duration_ns", "flags", "reason", "policy", "rule")
"""What of an end is read."""

SYNONYMS = {
    "principal": "source_principal",
    "destination": "destination_principal",
    "decision": "effect",
    "code": "status",
}
"""What columns are called by the filters that are about them."""


def _plain(names: Iterable[str]) -> dict[str, str]:
    return {name: f"first.{name}" for name in names}


# The time to the nanosecond, as it was written.
_PLACE = {"time": "first.time_ns", **_plain(("leaf", "spool", "sequence", "kind", "owner", "namespace"))}
# `day` and `hour` are for counts. In UTC, whatever the session's zone is.
_TIMES = {
    name: f"to_char(first.time AT TIME ZONE 'UTC', '{form}')"
    for name, form in (("day", "YYYY-MM-DD"), ("hour", 'YYYY-MM-DD"T"HH24:00"Z"'))
}
_CALLER = _plain(("source_principal", "source_address", "source_serial", "connection_security_policy"))
_TOKEN = _plain(("token_issuer", "token_subject", "claims"))
_HTTP = _plain(("method", "host", "path", "query", "request_headers", "request_id", "traceparent"))
_RULE = _plain(("policy", "rule", "decided_by", "detail", "prints", "annotations", "program", "keys", "revocations"))
_TRIAL = _plain(
    (
        *("dry_run_deny", "dry_run_deny_policy", "dry_run_deny_rule"),
        *("dry_run_allow", "dry_run_allow_policy", "dry_run_allow_rule", "audit_rules"),
    )
)
_WRITTEN = _plain(("redacted", "hashed"))

_DESTINATION = {
    "destination_principal": "coalesce(first.destination_principal, first.owner)",
    "destination_port": "first.destination_port",
}
_EFFECT = {
    # A refused connection was denied, whatever its record says; what is only counted had been let through.
    "effect": "coalesce(first.effect, CASE WHEN first.kind IN ('summary', 'dropped') THEN 'allow' ELSE 'deny' END)",
    "reason": "coalesce(first.reason, first.end_details)",
}
_OVER = {
    **{
        name: f"coalesce(ended.{name}, first.{name})"
        for name in ("status", "bytes_received", "bytes_sent", "duration_ns", "flags")
    },
    "interrupted": "first.kind = 'decision' AND ended.sequence IS NULL",
    **{f"ended_{name}": f"ended.{name}" for name in ("reason", "policy", "rule")},
}
_COUNTED = _plain(("count", "since_ns", "until_ns"))
_ACT = _plain(("actor", "action", "object"))

_LONE_END = "(first.kind = 'end' AND first.decision_sequence IS NULL)"
_BY_CALLER = {"principal": "source_principal", "namespace": "namespace", "decision": "effect"}
_BY_HTTP = {"path": "path", "method": "method", "code": "status"}

_REQUEST = {**_PLACE, **_TIMES, **_CALLER, **_DESTINATION, **_TOKEN, **_HTTP, **_EFFECT, **_OVER, **_RULE, **_TRIAL}

SHAPES: Mapping[Kind, Shape] = {
    # One row an inbound request, and one a connection that was refused before any; those that have no records of their
    # own are one row a count.
    Kind.REQUESTS: Shape(
        f"(first.kind IN ('decision', 'refusal', 'summary', 'dropped') OR {_LONE_END})",
        {**_REQUEST, **_COUNTED, **_WRITTEN},
        (
            *("time", "effect", "source_principal", "destination_principal", "method", "path"),
            *("status", "policy", "rule", "reason"),
        ),
        {
            **_BY_CALLER,
            "destination": "destination_principal",
            "policy": "policy",
            "reason": "reason",
            **_BY_HTTP,
            "interrupted": "interrupted",
        },
    ),
    Kind.REFUSALS: Shape(
        "first.kind = 'refusal'",
        {**_PLACE, **_TIMES, **_CALLER, **_DESTINATION, **_EFFECT, "detail": "first.detail", **_WRITTEN},
        ("time", "source_address", "source_principal", "destination_principal", "reason", "detail"),
        {**_BY_CALLER, "destination": "destination_principal", "reason": "reason"},
    ),
    # The same calls as their callers' sidecars saw them: a second witness.
    Kind.OUTBOUND: Shape(
        "first.kind = 'outbound'",
        {
            **_PLACE,
            **_TIMES,
            "source_principal": "first.owner",
            "destination_principal": "first.destination_principal",
            **_HTTP,
            **_plain(("status", "bytes_received", "bytes_sent", "duration_ns", "flags", "detail")),
            "reason": "first.end_details",
            **_WRITTEN,
        },
        ("time", "source_principal", "destination_principal", "method", "host", "path", "status", "reason"),
        {
            "principal": "source_principal",
            "namespace": "namespace",
            "destination": "destination_principal",
            "reason": "reason",
            **_BY_HTTP,
        },
    ),
    Kind.ACTS: Shape(
        "first.kind = 'act'",
        {**_PLACE, **_TIMES, **_ACT, "effect": "first.effect", "detail": "first.detail", **_WRITTEN},
        ("time", "effect", "actor", "action", "object", "detail"),
        {"principal": "actor", "namespace": "namespace", "decision": "effect"},
    ),
    # Requests and acts in one: what happened, or what one principal did.
    Kind.EVENTS: Shape(
        f"(first.kind IN ('decision', 'refusal', 'act', 'summary', 'dropped') OR {_LONE_END})",
        {
            **_REQUEST,
            **_COUNTED,
            **_ACT,
            "source_principal": "coalesce(first.source_principal, first.actor)",
            **_WRITTEN,
        },
        ("time", "kind", "effect", "source_principal", "destination_principal", "method", "path", "action", "object"),
        _BY_CALLER,
    ),
}
