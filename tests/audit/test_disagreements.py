from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from support.starts import take_in

from peltast.audit.disagreements import disagreements

Connection = asyncpg.Connection
Fields = dict[str, str | int]

CALLER = "spiffe://mesh.example/ns/bookshop/sa/storefront"
CALLED = "spiffe://mesh.example/ns/bookshop/sa/catalog"
BEGIN_NS = 1_790_000_000 * 10**9
BEGIN = datetime.fromtimestamp(1_790_000_000, UTC)


def outbound(request: str, status: int, seconds: float = 0) -> tuple[str, float, Fields]:
    return "outbound", seconds, {
        "destination_principal": CALLED,
        "method": "GET",
        "path": "/books",
        "request_id": request,
        "status": status,
        "duration_ns": 1_000_000,
    }  # fmt: skip


def decision(request: str, effect: str = "allow", seconds: float = 0) -> tuple[str, float, Fields]:
    return "decision", seconds, {
        "source_principal": CALLER,
        "destination_principal": CALLED,
        "method": "GET",
        "path": "/books",
        "request_id": request,
        "effect": effect,
        "status": 200 if effect == "allow" else 403,
    }  # fmt: skip


def end(of: int, status: int) -> tuple[str, float, Fields]:
    return "end", 0, {"decision_sequence": of, "status": status}


CASES = [
    pytest.param([outbound("a", 200)], [decision("a"), end(2, 200)], [], id="both agree"),
    pytest.param([outbound("a", 403)], [decision("a", "deny"), end(2, 403)], [], id="both agree on a denial"),
    pytest.param([outbound("a", 200)], [decision("a")], [], id="a request that still runs"),
    pytest.param([outbound("a", 200)], [], [("no inbound record", 200, None)], id="the called leaves it out"),
    pytest.param([], [decision("a"), end(2, 200)], [("no outbound record", None, 200)], id="the caller leaves it out"),
    pytest.param(
        [outbound("a", 200)],
        [decision("a", "deny"), end(2, 403)],
        [("told otherwise", 200, 403)],
        id="the called says that it denied",
    ),
    pytest.param(
        [outbound("a", 200)],
        [decision("a", "deny"), end(2, 200)],
        [("told otherwise", 200, 200)],
        id="the called says that it denied with a success",
    ),
    pytest.param(
        [outbound("a", 200)],
        [decision("b"), end(2, 200)],
        [("no inbound record", 200, None), ("no outbound record", None, 200)],
        id="another request id",
    ),
    pytest.param(
        [outbound("a", 200, 100)],
        [decision("a"), end(2, 200)],
        [("no outbound record", None, 200), ("no inbound record", 200, None)],
        id="the same request id long after",
    ),
    pytest.param([outbound("a", 200, 50)], [decision("a"), end(2, 200)], [], id="clocks that are apart"),
    pytest.param(
        [outbound("a", 200)],
        [decision("a"), end(2, 503), decision("a"), end(4, 200)],
        [],
        id="one that was tried again",
    ),
    pytest.param(
        [outbound("a", 504)],
        [decision("a"), end(2, 503), decision("a"), end(4, 200)],
        [("told otherwise", 504, 503)],
        id="one that was tried again and is told otherwise",
    ),
]


async def write(collector: Connection, spool: Any, records: list[tuple[str, float, Fields]]) -> None:
    for kind, seconds, fields in records:
        spool.writer.append(kind, BEGIN_NS + int(seconds * 10**9), fields)
    await take_in(collector, spool.id, spool.owner, spool.frames())


@pytest.fixture
def callers(spool: Any) -> Any:
    """The spool of the caller's sidecar."""
    return type(spool)(spool.root, spool.usage, CALLER)


@pytest.mark.parametrize(("caller", "called", "expected"), CASES)
async def test_what_two_sidecars_tell_is_compared(
    collector: Connection,
    auditor: Connection,
    spool: Any,
    callers: Any,
    caller: list[tuple[str, float, Fields]],
    called: list[tuple[str, float, Fields]],
    expected: list[tuple[str, int | None, int | None]],
) -> None:
    await write(collector, callers, caller)
    await write(collector, spool, called)
    since, until = BEGIN - timedelta(hours=1), BEGIN + timedelta(hours=1)
    found = await disagreements(auditor, since, until, timedelta(seconds=60))
    assert [(each.what, each.outbound_status, each.inbound_status) for each in found] == expected
    for each in found:
        assert (each.source, each.destination, each.method, each.path) == (CALLER, CALLED, "GET", "/books")
        assert each.outbound in (None, f"{callers.id.hex()}:2")
        assert each.inbound in (None, f"{spool.id.hex()}:2")


async def test_calls_outside_the_range_are_not_told(collector: Connection, auditor: Connection, callers: Any) -> None:
    await write(collector, callers, [outbound("a", 200, -61), outbound("b", 200), outbound("c", 200, 7200)])
    since, until = BEGIN - timedelta(seconds=60), BEGIN + timedelta(hours=1)
    found = await disagreements(auditor, since, until, timedelta(seconds=60))
    assert [each.request_id for each in found] == ["b"]
