"""The audit log over HTTP: what is answered, page by page, and what is refused, and why."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.starts import take_in

from peltast.audit.api.application import MAX_RUNNING, AuditApi, Caller
from peltast.audit.api.endpoint import ENDPOINTS, MAX_LIMIT
from peltast.audit.api.openapi import openapi
from peltast.audit.query.parse import PARAMETERS
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE

Spool = Any

STOREFRONT = "spiffe://mesh.example/ns/bookshop/sa/storefront"
REQUESTS, ACTS, COUNTS = (endpoint.path for endpoint in ENDPOINTS)


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Calls the application as a server does, with any bytes for a query string."""

    api: AuditApi
    caller: Caller

    async def get(self, path: str, query: bytes | dict[str, str] = b"", accept: str = "*/*") -> Answer:
        target, _, rest = path.partition("?")
        string = urlencode(query).encode() if isinstance(query, dict) else query
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": target,
            "query_string": string or rest.encode(),
            "headers": [(b"accept", accept.encode())],
            "state": {"caller": self.caller},
        }
        answer = Answer()

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                answer.body += message["body"]

        await self.api.application(scope, receive, send)
        return answer


Connect = Callable[[str | None], AbstractAsyncContextManager[asyncpg.Connection]]


@pytest.fixture
def connect(postgres: EmbeddedPostgres, owner: asyncpg.Connection) -> Connect:
    @asynccontextmanager
    async def connected(role: str | None) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(postgres.url(role or AUDITOR_ROLE))
        try:
            yield connection
        finally:
            await connection.close()

    return connected


@pytest.fixture
def client(connect: Connect) -> Client:
    return Client(AuditApi(connect), Caller("uid:0", None))


@pytest.fixture
async def filled(collector: asyncpg.Connection, spool: Spool, principal: str) -> Spool:
    """Ten requests, every third of them denied, and an act."""
    for number in range(10):
        allowed = {"effect": "allow"} if number % 3 else {"effect": "deny", "reason": "no_allow_rule", "status": 403}
        spool.append(source_principal=STOREFRONT, path=f"/{number}", method="GET", **allowed)
    spool.append("act", action="svid.issue", actor=principal, object="7", effect="allow")
    await take_in(collector, spool.id, principal, spool.frames())
    return spool


async def test_pages_lead_from_one_to_the_next(client: Client, filled: Spool) -> None:
    found: list[str] = []
    following: str | None = f"{REQUESTS}?limit=4&principal={STOREFRONT}&columns=path&until=2026-09-22T00:00:00Z"
    sizes = []
    while following:
        answer = await client.get(following)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        page = answer.json()
        sizes.append(len(page["rows"]))
        found += [row["path"] for row in page["rows"]]
        following = page["next"]
    assert sizes == [4, 4, 2]
    assert found == [f"/{number}" for number in reversed(range(10))]


async def test_the_range_of_pages_stays_although_time_goes_on(client: Client, filled: Spool) -> None:
    following = (await client.get(REQUESTS, {"since": "2500w", "until": "1s", "limit": "1"})).json()["next"]
    assert "since=19" in following
    assert "until=20" in following
    assert "until=1s" not in following


async def test_json_lines_and_csv_have_a_link_to_the_next_page(client: Client, filled: Spool) -> None:
    asked = {"limit": "2", "columns": "path,decision"}
    lines = await client.get(REQUESTS, asked, "application/jsonl")
    assert [json.loads(line) for line in lines.body.splitlines()] == [
        {"path": "/9", "effect": "deny"},
        {"path": "/8", "effect": "allow"},
    ]
    following = lines.headers["link"].removeprefix("<").removesuffix('>; rel="next"')
    table = await client.get(following, accept="text/csv")
    assert table.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(io.StringIO(table.body.decode()))) == [
        ["path", "effect"],
        ["/7", "allow"],
        ["/6", "deny"],
    ]
    assert "link" not in (await client.get(REQUESTS, {"path": "/none"}, "text/csv")).headers


async def test_counts_and_acts(client: Client, filled: Spool, principal: str) -> None:
    counted = await client.get(COUNTS, {"count_by": "decision"})
    assert counted.json() == {"rows": [{"effect": "allow", "count": 6}, {"effect": "deny", "count": 4}], "more": False}
    assert (await client.get(COUNTS, {"count_by": "path", "limit": "9"})).json()["more"]
    assert (await client.get(COUNTS)).json() == {"rows": [{"count": 10}], "more": False}
    assert (await client.get(COUNTS, {"kind": "acts"}, "text/csv")).body == b"count\r\n1\r\n"
    [act] = (await client.get(ACTS, {"columns": "actor,action"})).json()["rows"]
    assert act == {"actor": principal, "action": "svid.issue"}


REFUSED = [
    (REQUESTS, b"nonsense=1", 400, "nonsense"),
    (REQUESTS, b"count_by=path", 400, "count_by"),
    (REQUESTS, b"kind=acts", 400, "kind"),
    (REQUESTS, b"path=/a&path=/b", 400, "path"),
    (REQUESTS, b"limit=0", 400, "limit"),
    (REQUESTS, b"limit=1001", 400, "limit"),
    (REQUESTS, b"limit=99999999999999999999999999", 400, "limit"),
    (REQUESTS, b"limit=-1", 400, "limit"),
    (REQUESTS, b"path=%00", 400, "path"),
    (REQUESTS, b"path=%ff", 400, "query"),
    (REQUESTS, b"path=\xff", 400, "query"),
    (REQUESTS, b"path", 400, "query"),
    (REQUESTS, b"path=/" + b"a" * 140_000, 400, "path"),
    (REQUESTS, b"&".join(b"path=" for _ in range(65)), 400, "query"),
    (REQUESTS, b"since=1h&until=2h", 400, "until"),
    (REQUESTS, b"since=999999999999999999999999w", 400, "since"),
    (REQUESTS, b"since=1969-12-31T23:59:59Z", 400, "since"),
    (REQUESTS, b"since=9999-01-01T00:00:00Z", 400, "since"),
    (REQUESTS, b"cursor=garbage", 400, "cursor"),
    (REQUESTS, b"cursor=1-99999999999999999999", 400, "cursor"),
    (REQUESTS, b"cursor=99999999999999999999-1", 400, "cursor"),
    (REQUESTS, b"code=2xxx", 400, "code"),
    (REQUESTS, b"columns=path,(SELECT%201)", 400, "columns"),
    (ACTS, b"path=/a", 400, "path"),
    (COUNTS, b"cursor=1-1", 400, "cursor"),
    (COUNTS, b"kind=acts&path=/a", 400, "path"),
    (COUNTS, b"count_by=path);DROP%20TABLE%20records", 400, "count_by"),
]


@pytest.mark.parametrize(("path", "query", "status", "parameter"), REFUSED)
async def test_what_cannot_be_asked_is_refused_by_name(
    client: Client, path: str, query: bytes, status: int, parameter: str
) -> None:
    answer = await client.get(path, query)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["parameter"] == parameter
    assert problem["allowed"]
    assert len(answer.body) < 3000, "a long text is not sent back"


async def test_what_is_not_there_is_a_problem_too(client: Client) -> None:
    for path, accept, status in (
        ("/v1/audit", "*/*", 404),
        (REQUESTS, "text/html", 406),
        (COUNTS, "text/event-stream", 406),
    ):
        answer = await client.get(path, accept=accept)
        assert (answer.status, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"


async def test_who_has_no_role_is_told_nothing(client: Client, filled: Spool) -> None:
    client.caller = Caller("spiffe://a/stranger", None, known=False)
    answer = await client.get(REQUESTS)
    assert answer.status == 403
    assert answer.json()["detail"] == "spiffe://a/stranger has no role here"


async def test_a_role_that_may_not_read_is_refused_by_the_store(client: Client, filled: Spool) -> None:
    client.caller = Caller("spiffe://a/collector", "peltast_collector")
    answer = await client.get(REQUESTS)
    assert answer.status == 403
    assert "permission denied" in answer.json()["detail"]


async def test_a_store_that_is_away_or_slow_is_told_apart(client: Client, connect: Connect, filled: Spool) -> None:
    client.caller = Caller("uid:0", "nobody_at_all")
    assert (await client.get(REQUESTS)).status == 503

    @asynccontextmanager
    async def hurried(role: str | None) -> AsyncIterator[asyncpg.Connection]:
        async with connect(role) as connection, connect("postgres") as owner, owner.transaction():
            await owner.execute("LOCK TABLE records IN ACCESS EXCLUSIVE MODE")
            await connection.execute("SET statement_timeout = 50")
            yield connection

    slow = await Client(AuditApi(hurried), Caller("uid:0", None)).get(REQUESTS)
    assert slow.status == 504
    assert "too long" in slow.json()["detail"]


async def test_as_many_may_ask_as_may_at_a_time(connect: Connect, filled: Spool) -> None:
    waiting = 0
    go = asyncio.Event()

    @asynccontextmanager
    async def held(role: str | None) -> AsyncIterator[asyncpg.Connection]:
        nonlocal waiting
        waiting += 1
        await go.wait()
        async with connect(role) as connection:
            yield connection

    client = Client(AuditApi(held), Caller("uid:0", None))
    asking = [asyncio.ensure_future(client.get(REQUESTS)) for _ in range(MAX_RUNNING)]
    while waiting < MAX_RUNNING:  # noqa: ASYNC110
        await asyncio.sleep(0)
    refused = await client.get(REQUESTS)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    go.set()
    assert {answer.status for answer in await asyncio.gather(*asking)} == {200}


# The document ---------------------------------------------------------------------------------------------------------

EXAMPLES = {
    "since": "1h",
    "until": "2026-09-22T00:00:00Z",
    "code": "4xx",
    "cursor": "1-1",
    "columns": "time",
    "count_by": "hour",
    "limit": str(MAX_LIMIT),
}


async def test_the_document_tells_what_is_served(client: Client) -> None:
    answer = await client.get("/openapi.json")
    document = answer.json()
    assert document == json.loads(json.dumps(openapi()))
    served = [route.path for route in client.api.application.routes]
    assert [*document["paths"], "/openapi.json"] == served
    for path, operations in document["paths"].items():
        told = {parameter["name"]: parameter["schema"] for parameter in operations["get"]["parameters"]}
        for name in PARAMETERS:
            value = EXAMPLES.get(name) or told.get(name, {}).get("enum", ["a"])[-1]
            taken = await client.get(path, {name: value})
            assert taken.status == (200 if name in told else 400), (path, name, taken.body)
        for form in operations["get"]["responses"]["200"]["content"]:
            if form != "text/event-stream":
                answer = await client.get(path, accept=form)
                assert answer.headers["content-type"].startswith(form)


# Hostile --------------------------------------------------------------------------------------------------------------

SQL = ("' OR true --", "'; DROP TABLE records; --", "$1", "%s", "\\'", "1; SELECT pg_sleep(60)", "*", "", "{}", "\x00")
hostile = st.one_of(
    st.sampled_from(SQL),
    st.text(max_size=40),
    st.integers().map(str),
    st.sampled_from(["9" * 400, "-1", "1e9", "NaN", "é" * 70_000, "/" + "a" * 65_536]),
)
places = st.sampled_from([(endpoint.path, name) for endpoint in ENDPOINTS for name in endpoint.parameters])
every_example = settings(
    max_examples=settings.default.max_examples * 2 if settings.default else 200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@given(place=places, value=hostile)
@every_example
async def test_any_text_is_answered_or_refused(client: Client, place: tuple[str, str], value: str) -> None:
    path, name = place
    refused_or_answered(await client.get(path, urlencode({name: value}, errors="surrogatepass").encode()))


@given(path=st.sampled_from([endpoint.path for endpoint in ENDPOINTS]), query=st.binary(max_size=60))
@every_example
async def test_any_bytes_are_answered_or_refused(client: Client, path: str, query: bytes) -> None:
    refused_or_answered(await client.get(path, query))


def refused_or_answered(answer: Answer) -> None:
    body = answer.json()
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert body["allowed"]
        assert "parameter" in body, "it may have the empty name"
    else:
        assert body["rows"] is not None


stored = st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass"))


@given(values=st.lists(stored, min_size=3, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
async def test_whatever_is_stored_is_found_by_itself_and_shown(
    client: Client, owner: asyncpg.Connection, spool: Spool, principal: str, values: list[bytes]
) -> None:
    await owner.execute("TRUNCATE records, spools, quarantine")
    path, method, policy = values
    spool.append(path=path, method=method, policy=policy, effect="deny")
    await take_in(owner, spool.id, principal, spool.frames())
    texts = [value.decode(errors="backslashreplace").replace("\0", "\\x00") for value in values]
    # A trailing star asks for a prefix, which finds it as well.
    asked = {"path": texts[0], "limit": "1"}
    [row] = (await client.get(REQUESTS, asked)).json()["rows"]
    assert [row["path"], row["method"], row["policy"]] == texts
    lines = await client.get(REQUESTS, asked, "application/jsonl")
    assert len(lines.body.decode().splitlines()) == 1, "no row can make itself two"
    table = await client.get(REQUESTS, {**asked, "columns": "path,method,policy"}, "text/csv")
    _, cells = csv.reader(io.StringIO(table.body.decode(), newline=""))
    assert [cell.removeprefix("'") for cell in cells] == [text.removeprefix("'") for text in texts]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)


async def test_nothing_that_was_asked_has_changed_the_store(client: Client, filled: Spool) -> None:
    before = (await client.get(COUNTS)).json()
    for endpoint in ENDPOINTS:
        for name in endpoint.parameters:
            for value in SQL:
                refused_or_answered(await client.get(endpoint.path, {name: value}))
    assert (await client.get(COUNTS)).json() == before
