"""From text to a question: the one edge for the command line and for HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from peltast.audit.query.query import Code, Cursor, Decision, Order, Query, Text
from peltast.audit.query.shape import SHAPES, SYNONYMS, Kind

__all__ = ["DEFAULT_LIMIT", "MAX_TEXT", "PARAMETERS", "InvalidQuery", "Parameter", "followed", "parse"]

DEFAULT_LIMIT = 100
MAX_TEXT = 128 * 1024
"""Characters of a parameter: longer than any path that Envoy lets through."""

_MAX_NS = 2**64 - 1
_MAX_BIGINT = 2**63 - 1
_GIVEN_SHOWN = 100


class InvalidQuery(ValueError):
    """A question that cannot be answered: which parameter, what was given, what is allowed."""

    def __init__(self, parameter: str, given: str, allowed: str) -> None:
        shown = given if len(given) <= _GIVEN_SHOWN else f"{given[:_GIVEN_SHOWN]}…"
        super().__init__(f"{parameter}: {shown!a} is given; allowed: {allowed}")
        self.parameter = parameter
        self.given = shown.encode("ascii", "backslashreplace").decode()
        self.allowed = allowed


@dataclass(frozen=True)
class Parameter:
    """What can be asked by."""

    help: str
    pattern: str | None = None
    choices: tuple[str, ...] = ()


_TIME = r"^([0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9:.]+([Zz]|[+-][0-9]{2}:[0-9]{2})|([0-9]+[smhdw])+)$"
_CODE = r"^[1-9]([0-9][0-9]|xx)$"
_CURSOR = r"^[0-9]{1,20}-[0-9]{1,19}$"
_NUMBER = r"^[0-9]{1,9}$"

PARAMETERS: Mapping[str, Parameter] = {
    "since": Parameter("From this time on: RFC 3339, or so long ago (30m, 1h, 2d).", _TIME),
    "until": Parameter("Before this time: RFC 3339, or so long ago.", _TIME),
    "kind": Parameter(
        "Inbound requests with refused connections, or only these, outbound calls, acts of the control plane, or "
        "requests and acts in one.",
        choices=tuple(Kind),
    ),
    "principal": Parameter("Who called: a SPIFFE ID (or, as Istio writes it, without spiffe://). Of acts, who acted."),
    "destination": Parameter("Who was called, likewise."),
    "namespace": Parameter("The namespace of the workload whose record it is."),
    "decision": Parameter("What was decided.", choices=tuple(Decision)),
    "policy": Parameter("The policy that decided, as NAMESPACE/NAME."),
    "reason": Parameter("Why it was decided so, or the connection refused."),
    "path": Parameter("The path, with any query string or with the one given; with * at its end: what begins so."),
    "method": Parameter("The method."),
    "code": Parameter("The HTTP status: 403, or 4xx.", _CODE),
    "interrupted": Parameter("Only requests with an end on record (false), or without (true).",
                             choices=("true", "false")),
    "columns": Parameter("The columns of rows, with commas between them."),
    "count_by": Parameter("Counts instead of rows: by these columns, with commas between them."),
    "order": Parameter("Which rows come first.", choices=tuple(Order)),
    "limit": Parameter("At most so many rows; 0 is all.", _NUMBER),
    "cursor": Parameter("Rows after this one: the cursor that came with the page before.", _CURSOR),
}  # fmt: skip

_TEXTS = ("namespace", "decision", "policy", "reason", "method")
_NOT_FOLLOWED = {
    "until": "what is followed has no end",
    "limit": "what is followed has no end",
    "count_by": "only rows are followed",
    "order": "rows come as they are committed",
    "cursor": "rows come as they are committed",
    "code": "it is known when a request is over; rows come before that",
    "interrupted": "it is known when a request is over; rows come before that",
}


def parse(given: Mapping[str, str], now_ns: int) -> Query:
    """The question in `given`, by name of parameter; relative times are before `now_ns`.

    Raises:
        InvalidQuery: see there.
    """
    for name, value in given.items():
        _check(name, value)
    kind = Kind(given.get("kind", Kind.REQUESTS))
    query = Query(
        kind=kind,
        since=_time(given, "since", now_ns),
        until=_time(given, "until", now_ns),
        equal=_equal(given),
        path=_path(given),
        code=_code(given),
        columns=_columns(given, kind),
        counted="count_by" in given,
        order=Order(given.get("order", Order.NEWEST)),
        limit=int(given.get("limit", DEFAULT_LIMIT)) or None,
        after=_cursor(given),
    )
    _check_together(query, given)
    return query


def followed(query: Query, given: Mapping[str, str]) -> Query:
    """`query` without what is not known when a row is followed.

    Raises:
        InvalidQuery: it asks for that, or for an end.
    """
    for name, why in _NOT_FOLLOWED.items():
        if name in given:
            raise InvalidQuery(name, given[name], f"nothing, when following: {why}")
    known = tuple(name for name in query.columns if not query.shape.needs_end(name))
    if "columns" in given and known != query.columns:
        raise InvalidQuery("columns", given["columns"], f"when following: {', '.join(known)}; {_NOT_FOLLOWED['code']}")
    return replace(query, columns=known, limit=None)


def _check(name: str, value: str) -> None:
    if name not in PARAMETERS:
        raise InvalidQuery(name, value, f"the parameters are {', '.join(PARAMETERS)}")
    if len(value) > MAX_TEXT:
        raise InvalidQuery(name, value, f"at most {MAX_TEXT} characters")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidQuery(name, value, r"UTF-8; other bytes are on record as \xNN")
    if "\0" in value:
        raise InvalidQuery(name, value, r"text without NUL, which is on record as \x00")
    if PARAMETERS[name].choices and value not in PARAMETERS[name].choices:
        raise InvalidQuery(name, value, ", ".join(PARAMETERS[name].choices))
    pattern = PARAMETERS[name].pattern
    if pattern and not re.fullmatch(pattern, value, re.ASCII):
        raise InvalidQuery(name, value, PARAMETERS[name].help)


def _check_together(query: Query, given: Mapping[str, str]) -> None:
    shape = query.shape
    for name in SHAPES[Kind.REQUESTS].filters:
        if name in given and name not in shape.filters:
            raise InvalidQuery(name, given[name], f"of {query.kind}, only {', '.join(shape.filters)}")
    if query.since is not None and query.until is not None and query.until < query.since:
        raise InvalidQuery("until", given["until"], f"a time that is not before since ({given['since']})")
    if query.counted:
        _refuse_of_counts(given)


def _refuse_of_counts(given: Mapping[str, str]) -> None:
    for name in ("columns", "order", "cursor"):
        if name in given:
            raise InvalidQuery(name, given[name], f"either {name} or count_by: it is of rows")


def _equal(given: Mapping[str, str]) -> dict[str, str | bool]:
    equal: dict[str, str | bool] = {name: given[name] for name in _TEXTS if name in given}
    equal |= {name: _principal(given[name]) for name in ("principal", "destination") if name in given}
    if "interrupted" in given:
        equal["interrupted"] = given["interrupted"] == "true"
    return equal


def _principal(text: str) -> str:
    return f"spiffe://{text}" if re.fullmatch(r"[^/:]+/ns/[^/]+/sa/[^/]+", text) else text


def _path(given: Mapping[str, str]) -> Text | None:
    if "path" not in given:
        return None
    text = given["path"]
    return Text(text[:-1], prefix=True) if text.endswith("*") else Text(text)


def _code(given: Mapping[str, str]) -> Code | None:
    if "code" not in given:
        return None
    text = given["code"]
    return Code(int(text.replace("x", "0")), int(text.replace("x", "9")))


def _columns(given: Mapping[str, str], kind: Kind) -> tuple[str, ...]:
    name = "count_by" if "count_by" in given else "columns"
    if not given.get(name):
        return ()
    known = [each for each in SHAPES[kind].columns if not (name == "count_by" and each == "count")]
    columns = tuple(SYNONYMS.get(each, each) for each in given[name].split(","))
    if set(columns) - set(known) or len(set(columns)) < len(columns):
        raise InvalidQuery(name, given[name], f"of {kind}, each once: {', '.join(known)}")
    return columns


def _cursor(given: Mapping[str, str]) -> Cursor | None:
    if "cursor" not in given:
        return None
    time_us, leaf = map(int, given["cursor"].split("-"))
    if time_us > _MAX_NS // 1000 or leaf > _MAX_BIGINT:
        raise InvalidQuery("cursor", given["cursor"], PARAMETERS["cursor"].help)
    return Cursor(time_us, leaf)


# Times ----------------------------------------------------------------------------------------------------------------

_UNITS_NS = {unit: seconds * 10**9 for unit, seconds in (("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("w", 604800))}


def _time(given: Mapping[str, str], name: str, now_ns: int) -> int | None:
    if name not in given:
        return None
    text = given[name]
    time_ns = _instant(text) if "-" in text else now_ns - _nanoseconds(re.findall("([0-9]+)([smhdw])", text[:40]))
    if time_ns is None or not 0 <= time_ns <= _MAX_NS:
        raise InvalidQuery(name, text, f"{PARAMETERS[name].help} From 1970 to 2554.")
    return time_ns


def _nanoseconds(parts: Iterable[tuple[str, str]]) -> int:
    return sum(int(number) * _UNITS_NS[unit] for number, unit in parts)


def _instant(text: str) -> int | None:
    """Nanoseconds since 1970 of an RFC 3339 time; none where it is not one."""
    found = re.fullmatch(r"(.{19})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})", text.upper(), re.ASCII)
    if found is None:
        return None
    seconds, fraction, zone = found.groups()
    try:
        whole = datetime.fromisoformat(seconds + zone.replace("Z", "+00:00")) - datetime(1970, 1, 1, tzinfo=UTC)
    except ValueError:
        return None
    return (whole.days * 86400 + whole.seconds) * 10**9 + int((fraction or "").ljust(9, "0"))
