from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

import asyncpg
import pytest
from support.running import eventually
from support.starts import take_in

from peltast.audit.query import read, sql
from peltast.audit.query.parse import parse
from peltast.audit.query.query import Order, Query
from peltast.audit.query.shape import Kind
from peltast.audit.query.values import as_object
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import migrate

Spool = Any
Connection = asyncpg.Connection

DEADLINE_SECONDS = 20.0
STOREFRONT = "spiffe://mesh.example/ns/bookshop/sa/storefront"
CATALOG = "spiffe://mesh.example/ns/bookshop/sa/catalog"
START_NS = 1_790_000_000 * 10**9
"""The time of the first record: 2026-09-21T14:13:20Z. Each is 1 us after the one before."""


@pytest.fixture
async def shipped(collector: Connection, spool: Spool, principal: str) -> Any:
    async def ship(another: Spool = None) -> None:
        each = another or spool
        await take_in(collector, each.id, principal, each.frames())

    return ship


def asked(**given: str) -> Query:
    query = parse(
        {**given, **({} if "count_by" in given else {"order": given.get("order", "oldest")})},
        now_ns=START_NS + 3600 * 10**9,
    )
    return query if query.columns or query.counted else replace(query, columns=query.shape.recorded)


async def rows(connection: Connection, **given: str) -> list[asyncpg.Record]:
    return [row async for row in read.stream(connection, asked(**given))]


async def sequences(connection: Connection, **given: str) -> list[int]:
    return [row["sequence"] for row in await rows(connection, **given)]


async def counted(connection: Connection, **given: str) -> list[tuple[Any, ...]]:
    return [tuple(row) async for row in read.counts(connection, asked(**given))]


# Rows -----------------------------------------------------------------------------------------------------------------


async def test_a_decision_and_its_end_are_one_request(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    decision = spool.append(
        path="/a", method="GET", effect="allow", source_principal=STOREFRONT, destination_principal=principal
    )
    spool.append(
        "end", decision_sequence=decision, status=204, bytes_sent=10, bytes_received=3, duration_ns=77, flags=1
    )
    await shipped()
    [request] = await rows(auditor)
    expected = {
        "kind": "decision",
        "sequence": decision,
        "path": "/a",
        "method": "GET",
        "effect": "allow",
        "status": 204,
        "bytes_sent": 10,
        "bytes_received": 3,
        "duration_ns": 77,
        "flags": 1,
        "source_principal": STOREFRONT,
        "destination_principal": principal,
        "interrupted": False,
    }
    assert {name: request[name] for name in expected} == expected


async def test_a_decision_without_an_end_is_interrupted(auditor: Connection, spool: Spool, shipped: Any) -> None:
    first, second = spool.append(effect="allow"), spool.append(effect="allow")
    spool.append("end", decision_sequence=second, status=200)
    await shipped()
    found = {row["sequence"]: (row["interrupted"], row["status"]) for row in await rows(auditor)}
    assert found == {first: (True, None), second: (False, 200)}
    assert await sequences(auditor, interrupted="true") == [first]
    spool.append("end", decision_sequence=first, status=503)
    await shipped()
    assert [row["interrupted"] for row in await rows(auditor)] == [False, False]


async def test_ends_of_another_spool_do_not_join(
    auditor: Connection, spool: Spool, other_spool: Spool, shipped: Any
) -> None:
    decision = spool.append(effect="allow")
    other_spool.append("end", decision_sequence=decision, status=200)
    await shipped()
    await shipped(other_spool)
    assert [row["interrupted"] for row in await rows(auditor)] == [True]


async def test_what_ended_before_a_decision_is_denied_by_why_it_ended(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    spool.append("end", status=400, end_details="http1.codec_error")
    spool.append("refusal", reason="peer has 2 URI SANs", source_address="127.0.0.9:5")
    await shipped()
    found = [
        (row["kind"], row["effect"], row["reason"], row["status"], row["destination_principal"], row["interrupted"])
        for row in await rows(auditor)
    ]
    assert found == [
        ("end", "deny", "http1.codec_error", 400, principal, False),
        ("refusal", "deny", "peer has 2 URI SANs", None, principal, False),
    ]


async def test_each_kind_has_its_rows(auditor: Connection, spool: Spool, shipped: Any, principal: str) -> None:
    decision = spool.append(effect="allow", source_principal=STOREFRONT)
    spool.append("end", decision_sequence=decision, status=200)
    refusal = spool.append("refusal", reason="no_certificate")
    outbound = spool.append("outbound", status=200, destination_principal=STOREFRONT)
    act = spool.append("act", action="svid.issue", actor=STOREFRONT, effect="allow")
    await shipped()
    found = {kind: await sequences(auditor, kind=kind) for kind in Kind}
    assert found == {
        "requests": [decision, refusal],
        "refusals": [refusal],
        "outbound": [outbound],
        "acts": [act],
        "events": [decision, refusal, act],
    }
    assert await sequences(auditor, kind="acts", principal=STOREFRONT) == [act]
    assert await sequences(auditor, kind="events", principal=STOREFRONT) == [decision, act]
    assert await sequences(auditor, kind="outbound", principal=principal) == [outbound], "the caller is the writer"


async def test_what_is_only_counted_counts(auditor: Connection, spool: Spool, shipped: Any) -> None:
    spool.append(effect="allow", source_principal=STOREFRONT)
    spool.append("summary", source_principal=STOREFRONT, count=41, since_ns=1, until_ns=2)
    spool.append("dropped", count=8, since_ns=1, until_ns=2)
    spool.append(effect="deny", source_principal=STOREFRONT)
    await shipped()
    assert await counted(auditor, count_by="principal,decision") == [
        (STOREFRONT, "allow", 42),
        (None, "allow", 8),
        (STOREFRONT, "deny", 1),
    ]
    assert await counted(auditor, count_by="") == [(51,)]
    assert await counted(auditor, count_by="decision", decision="deny", principal="spiffe://a/b") == []


FILTERS = [
    ({"principal": STOREFRONT}, [2]),
    ({"principal": STOREFRONT.removeprefix("spiffe://")}, [2]),
    ({"principal": STOREFRONT[:-1]}, []),
    ({"destination": "spiffe://a/x"}, [2]),
    ({"destination": CATALOG}, [3, 4, 5, 6]),
    ({"namespace": "bookshop"}, [2, 3, 4, 5, 6]),
    ({"namespace": "bookshop%"}, []),
    ({"decision": "allow"}, [2, 3]),
    ({"decision": "deny"}, [4, 5, 6]),
    ({"policy": "a/one"}, [2, 4]),
    ({"reason": "allow_rule"}, [2]),
    ({"reason": "http1.codec_error"}, [6]),
    ({"path": "/a"}, [2, 3]),
    ({"path": "/a?b=c"}, [3]),
    ({"path": "/a*"}, [2, 3, 4]),
    ({"path": "/%"}, []),
    ({"path": "/_b"}, []),
    ({"path": "*"}, [2, 3, 4, 5]),
    ({"method": "GET"}, [2]),
    ({"method": "get"}, []),
    ({"code": "403"}, [4]),
    ({"code": "4xx"}, [4, 5, 6]),
    ({"code": "5xx"}, []),
    ({"interrupted": "true"}, [3, 4, 5]),
    ({"interrupted": "false", "decision": "allow"}, [2]),
    ({"policy": "a/one", "decision": "deny", "path": "/ab"}, [4]),
    ({"since": "2026-09-21T14:13:20.000003Z"}, [4, 5, 6]),
    ({"since": "2026-09-21T16:13:20.000003+02:00"}, [4, 5, 6]),
    ({"until": "2026-09-21T14:13:20.000003Z"}, [2, 3]),
    ({"since": "2026-09-21T14:13:20.000002Z", "until": "2026-09-21T14:13:20.000003Z"}, [3]),
    ({"since": "2026-09-21T14:13:20.000002001Z", "until": "2026-09-21T14:13:20.000003001Z"}, [4]),
    ({"since": "2026-09-21T14:13:20.000002Z", "until": "2026-09-21T14:13:20.000002Z"}, []),
    ({"since": "1h"}, [2, 3, 4, 5, 6]),
    ({"until": "1h"}, []),
    ({"since": "30m30s"}, []),
    ({"limit": "2"}, [2, 3]),
    ({"limit": "2", "order": "newest"}, [6, 5]),
    ({"limit": "0"}, [2, 3, 4, 5, 6]),
]


@pytest.mark.parametrize(("given", "expected"), FILTERS, ids=[str(given) for given, _ in FILTERS])
async def test_a_filter_gives_what_it_says(
    auditor: Connection, spool: Spool, shipped: Any, given: dict[str, str], expected: list[int]
) -> None:
    one = {"policy": "a/one"}
    both = {"source_principal": STOREFRONT, "destination_principal": "spiffe://a/x"}
    allowed = spool.append(**one, **both, path="/a", method="GET", effect="allow", reason="allow_rule")
    spool.append(path="/a?b=c", method="POST", effect="allow", reason="no_allow_policy")
    spool.append(**one, path="/ab", effect="deny", status=403, reason="deny_rule")
    spool.append(path="/b", effect="deny", status=401, reason="token_required")
    spool.append("end", status=400, end_details="http1.codec_error")
    spool.append("end", decision_sequence=allowed, status=200)
    await shipped()
    assert await sequences(auditor, **given) == expected


async def test_rows_of_one_time_come_in_order_of_the_tree(auditor: Connection, spool: Spool, shipped: Any) -> None:
    for time_ns in (3000, 1000, 2000, 1000):
        spool.writer.append("decision", time_ns, {"effect": "allow"})
    await shipped()
    assert await sequences(auditor) == [3, 5, 4, 2]
    assert await sequences(auditor, order="newest") == [2, 4, 5, 3]


@pytest.mark.parametrize("order", Order)
async def test_pages_have_every_row_once_while_others_are_stored(
    auditor: Connection, spool: Spool, shipped: Any, order: Order
) -> None:
    choose = Random(7)
    for _ in range(50):
        spool.writer.append("decision", START_NS + choose.randrange(5) * 1000, {"effect": "allow"})
    await shipped()
    expected = await sequences(auditor, order=order, limit="0")
    found: list[int] = []
    given = {"order": order.value, "limit": "7"}
    while True:
        page, cursor = await read.page(auditor, asked(**given))
        found += [row["sequence"] for row in page]
        # What is stored meanwhile lies behind: before the newest, or beyond the last that was there.
        spool.writer.append("decision", START_NS + (10**9 if order is Order.NEWEST else -(10**9)), {})
        await shipped()
        if cursor is None:
            break
        given["cursor"] = str(cursor)
    assert found == expected


async def test_rows_are_those_of_the_view(auditor: Connection, spool: Spool, other_spool: Spool, shipped: Any) -> None:
    choose = Random(5)
    for each in (spool, other_spool):
        for _ in range(60):
            decision = each.append(
                choose.choice(["decision", "decision", "refusal", "outbound", "end"]),
                **{name: choose.choice(["a", "b"]) for name in ("path", "policy", "reason") if choose.random() < 0.7},
                **({"effect": choose.choice(["allow", "deny"])} if choose.random() < 0.9 else {}),
                **({"status": choose.choice([200, 403])} if choose.random() < 0.5 else {}),
            )
            if choose.random() < 0.5:
                each.append("end", decision_sequence=decision, status=200, duration_ns=7, reason="token_revoked")
        await shipped(each)
    view = [dict(row) for row in await auditor.fetch("SELECT * FROM requests ORDER BY time, leaf")]
    # With an end of the range, ends of requests are looked for in two parts.
    for until in ({}, {"until": "2026-09-21T14:13:21Z"}, {"until": "2026-09-21T13:00:00Z"}):
        found = await rows(auditor, limit="0", **until)
        compared = set(view[0]) & set(found[0].keys()) - {"time"} if found else set()
        assert len(compared) > 40 or "13:00" in str(until)
        assert [{name: row[name] for name in compared} for row in found] == [
            {name: row[name] for name in compared} for row in (view if "13:00" not in str(until) else [])
        ]


async def test_a_request_that_ends_days_later_has_its_end(auditor: Connection, spool: Spool, shipped: Any) -> None:
    decision = spool.writer.append("decision", START_NS, {"effect": "allow"})
    early = spool.writer.append("decision", START_NS, {"effect": "allow"})
    spool.writer.append("end", START_NS + 3 * 86400 * 10**9, {"decision_sequence": decision, "status": 200})
    spool.writer.append("end", START_NS - 3500 * 10**9, {"decision_sequence": early, "status": 201})
    await shipped()
    day = {"since": "2026-09-21T14:00:00Z", "until": "2026-09-21T15:00:00Z"}
    for given in (day, {"since": day["since"]}, {"until": day["until"]}, {}):
        assert [row["status"] for row in await rows(auditor, **given)] == [200, 201], given
        assert await counted(auditor, **given, count_by="code,interrupted") == [(200, False, 1), (201, False, 1)]


async def test_time_is_told_to_the_nanosecond(auditor: Connection, spool: Spool, shipped: Any) -> None:
    spool.writer.append("decision", START_NS + 123_456_789, {"effect": "allow"})
    spool.writer.append("decision", 2**64 - 1, {"effect": "allow"})
    await shipped()
    found = [as_object(row, ["time"])["time"] for row in await rows(auditor)]
    assert found == ["2026-09-21T14:13:20.123456789Z", "2554-07-21T23:34:33.709551615Z"]
    assert await sequences(auditor, since=found[0], until="2026-09-21T14:13:20.123456790Z") == [2]
    assert await sequences(auditor, until=found[0]) == []


async def test_counts_by_hour_and_day_are_of_utc(auditor: Connection, spool: Spool, shipped: Any) -> None:
    spool.append(effect="allow")
    await shipped()
    await auditor.execute("SET timezone = 'Asia/Tokyo'")
    assert await counted(auditor, count_by="day,hour") == [("2026-09-21", "2026-09-21T14:00Z", 1)]


async def test_rows_stay_in_the_server_until_they_are_read(auditor: Connection, owner: Connection) -> None:
    await owner.execute(
        "INSERT INTO records (spool, sequence, leaf, owner, schema, kind, time, time_ns, body, link) SELECT '', n, n, "
        "'spiffe://a/b', 1, 'decision', to_timestamp(n), n * 1000000000::numeric, '', '' "
        "FROM generate_series(1, 30000) n"
    )
    seen = 0
    async for _ in read.stream(auditor, replace(asked(limit="0"), columns=("path",))):
        if seen == 0:
            cursors = await owner.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = 'peltast_auditor' AND state LIKE 'idle in%'"
            )
            assert cursors == 1, "the rest is still in the server"
        seen += 1
    assert seen == 30000


# Plans ----------------------------------------------------------------------------------------------------------------

DAYS = [datetime(2026, 9, day, tzinfo=UTC) for day in range(19, 26)]


PLANNING = "/planning?"


@pytest.fixture(scope="module")
def planning(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A store of its own with a partition a day and a request a minute, each ended a second later."""
    asyncio.run(_fill(postgres))
    yield postgres.url(SUPERUSER).replace("/postgres?", PLANNING)
    asyncio.run(_execute(postgres.url(SUPERUSER), "DROP DATABASE planning"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def _fill(postgres: EmbeddedPostgres) -> None:
    await _execute(postgres.url(SUPERUSER), "CREATE DATABASE planning")
    connection = await asyncpg.connect(postgres.url(SUPERUSER).replace("/postgres?", PLANNING))
    await migrate(connection)
    for day, after in pairwise(DAYS):
        await connection.execute(
            f"CREATE TABLE records_{day:%Y%m%d} PARTITION OF records FOR VALUES FROM ('{day}') TO ('{after}')"
        )
    for kind, base, extra in (("decision", 0, "NULL::bigint"), ("end", 10**6, "n")):
        await connection.execute(
            "INSERT INTO records (spool, sequence, leaf, owner, schema, kind, time, time_ns, body, link, "
            "source_principal, effect, decision_sequence, status) "
            f"SELECT 's', n + {base}, n * 2 + {base % 7}, 'spiffe://a/ns/b/sa/c', 1, '{kind}', "
            f"'{DAYS[0]}'::timestamptz + make_interval(mins => n, secs => {1 if base else 0}), 0, '', '', "
            f"'spiffe://a/ns/b/sa/' || n % 500, 'allow', {extra}, 200 FROM generate_series(1, 8639) n"
        )
    await connection.execute("ANALYZE records")
    await connection.close()


@pytest.fixture
async def partitioned(planning: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(planning)
    yield connection
    await connection.close()


def touched(plan: dict[str, Any]) -> set[str]:
    """The partitions that a plan read in fact."""
    own = {plan["Relation Name"]} if "Relation Name" in plan and plan["Actual Loops"] else set()
    return own.union(*(touched(each) for each in plan.get("Plans", ())))


def indexes(plan: dict[str, Any]) -> set[str]:
    own = {plan["Index Name"]} if "Index Name" in plan and plan["Actual Loops"] else set()
    return own.union(*(indexes(each) for each in plan.get("Plans", ())))


async def plan_of(connection: Connection, make: Callable[[Query], sql.Statement], query: Query) -> dict[str, Any]:
    statement = make(query)
    explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.text}", *statement.arguments)
    plan: dict[str, Any] = json.loads(explained)[0]["Plan"]
    return plan


NOON = {"since": "2026-09-21T11:00:00Z", "until": "2026-09-21T12:00:00Z"}
EARLY = {"since": "2026-09-21T00:10:00Z", "until": "2026-09-21T00:20:00Z"}
WHOLE_DAY = {"since": "2026-09-21T00:00:00Z", "until": "2026-09-22T00:00:00Z"}

TOUCHED = [
    ("rows", {**NOON, "columns": "path"}, ["21"]),
    ("rows", {**WHOLE_DAY, "columns": "path"}, ["21"]),
    ("rows", {**NOON, "order": "newest"}, ["21"]),
    ("rows", {**NOON, "order": "newest", "cursor": "1789990200000000-9999999"}, ["21"]),
    ("rows", {**NOON, "principal": "spiffe://a/ns/b/sa/60"}, ["21"]),
    ("rows", {**NOON, "code": "200"}, ["21"]),
    ("counts", {**NOON, "count_by": "principal,decision"}, ["21"]),
    ("counts", {**NOON, "count_by": "code"}, ["21"]),
    ("counts", {**WHOLE_DAY, "count_by": "decision"}, ["21"]),
    # An end lies up to an hour before its decision, by a clock that was set back; and most often just behind it.
    ("counts", {**EARLY, "count_by": "code"}, ["20", "21"]),
    ("counts", {**WHOLE_DAY, "count_by": "code"}, ["20", "21", "22"]),
]


@pytest.mark.parametrize(("what", "given", "days"), TOUCHED)
async def test_only_the_partitions_that_match_are_read(
    partitioned: Connection, what: str, given: dict[str, str], days: list[str]
) -> None:
    make = sql.rows if what == "rows" else sql.counts
    plan = await plan_of(partitioned, make, asked(**given))
    assert touched(plan) == {f"records_202609{day}" for day in days}
    assert await (counted if what == "counts" else rows)(partitioned, **given)


async def test_a_principal_is_found_by_its_index(partitioned: Connection) -> None:
    plan = await plan_of(partitioned, sql.rows, asked(**WHOLE_DAY, principal="spiffe://a/ns/b/sa/7", columns="path"))
    assert indexes(plan) == {"records_20260921_source_principal_time_idx"}


# Following ------------------------------------------------------------------------------------------------------------


FOLLOWED = Query(Kind.EVENTS, columns=("sequence", "kind", "path"), limit=None)


@pytest.fixture
def connect(postgres: EmbeddedPostgres) -> Any:
    @asynccontextmanager
    async def connected() -> AsyncIterator[Connection]:
        connection = await asyncpg.connect(postgres.url("peltast_auditor"))
        try:
            yield connection
        finally:
            await connection.close()

    return connected


async def test_following_gives_what_is_committed_from_then_on(
    auditor: Connection, spool: Spool, other_spool: Spool, connect: Any, shipped: Any
) -> None:
    spool.append(path="/before")
    await shipped()
    found = read.follow(connect, FOLLOWED, await read.last_leaf(auditor))
    decision = spool.append(path="/after")
    spool.append("end", decision_sequence=decision, status=200)
    await shipped()
    other_spool.append("act", action="svid.issue")
    await shipped(other_spool)
    async with asyncio.timeout(DEADLINE_SECONDS):
        kinds = [(row["kind"], row["path"]) for row in [await anext(found), await anext(found)]]
    assert kinds == [("decision", "/after"), ("act", None)], "the end of a decision is no event of its own"


async def test_following_from_a_time_begins_with_what_is_there(
    auditor: Connection, spool: Spool, connect: Any, shipped: Any
) -> None:
    for path in ("/a", "/b", "/c"):
        spool.append(path=path)
    await shipped()
    since = START_NS + 2000
    found = read.follow(connect, replace(FOLLOWED, since=since), await read.leaf_before(auditor, since))
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert [(await anext(found))["path"], (await anext(found))["path"]] == ["/b", "/c"]
    assert await read.leaf_before(auditor, START_NS + 10**9) == await read.last_leaf(auditor)


async def test_following_misses_nothing_while_many_write_and_connections_die(
    owner: Connection, postgres: EmbeddedPostgres, spool: Spool, root: Any, usage: Any, connect: Any, principal: str
) -> None:
    spools = [spool, *(type(spool)(root, usage) for _ in range(3))]
    expected = {(spool.id, number) for spool in spools for number in range(2, 42)}

    async def write(spool: Any) -> None:
        connection = await asyncpg.connect(postgres.url("peltast_collector"))
        for _ in range(40):
            spool.append(path="/a")
            await take_in(connection, spool.id, principal, spool.frames())
        await connection.close()

    async def kill() -> None:
        for number in (1, 40, 80, 120):
            await eventually(lambda: len(found) >= number, f"{number} rows")  # noqa: B023
            await owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'peltast_auditor'"
            )

    found: list[tuple[bytes, int]] = []
    leaves: list[int] = []

    async def follow() -> None:
        async for row in read.follow(connect, replace(FOLLOWED, columns=("spool", "sequence")), -1):
            found.append((row["spool"], row["sequence"]))
            leaves.append(row["leaf"])
            if len(found) >= len(expected):
                return

    async with asyncio.timeout(60):
        await asyncio.gather(follow(), kill(), *map(write, spools))
    assert sorted(found) == sorted(expected)
    assert leaves == sorted(leaves)
