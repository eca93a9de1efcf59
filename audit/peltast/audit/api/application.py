"""The application: questions by HTTP, answered as the caller's role sees the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import urlencode

import asyncpg
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from peltast.audit.api.endpoint import ENDPOINTS, Endpoint
from peltast.audit.api.openapi import openapi
from peltast.audit.api.problem import HANDLERS, Problem
from peltast.audit.query import read
from peltast.audit.query.parse import InvalidQuery, followed
from peltast.audit.query.query import Query
from peltast.audit.query.values import as_object, json_text, time_text
from peltast.audit.query.write import Form, writer

__all__ = ["AuditApi", "Caller"]

log = structlog.get_logger()

Connect: TypeAlias = Callable[[str | None], AbstractAsyncContextManager[read.Connection]]

MAX_RUNNING = 8
MAX_FOLLOWING = 8
KEEP_ALIVE_SECONDS = 15.0

_LOGGED = 256
"""Characters of a parameter that go to the log."""

_JSON, _EVENTS = "application/json", "text/event-stream"
_FORMS = {"application/jsonl": Form.JSONL, "application/x-ndjson": Form.JSONL, "text/csv": Form.CSV}


@dataclass(frozen=True)
class Caller:
    """Who asks, and as which role of the database: none is the one that the service has itself."""

    name: str
    role: str | None
    known: bool = True


class AuditApi:
    """Answers by `connect`, which gives a connection with the rights of a role."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._running = asyncio.Semaphore(MAX_RUNNING)
        self._following = asyncio.Semaphore(MAX_FOLLOWING)
        routes = [Route(each.path, partial(self._answer, each)) for each in ENDPOINTS]
        described = Route("/openapi.json", lambda _: JSONResponse(openapi()))
        self.application = Starlette(routes=[*routes, described], exception_handlers=HANDLERS)

    async def _answer(self, endpoint: Endpoint, request: Request) -> Response:
        caller: Caller = request.state.caller
        if not caller.known:
            log.warning("audit.query refused", caller=caller.name, path=endpoint.path)
            raise Problem(HTTPStatus.FORBIDDEN, f"{caller.name} has no role here")
        given = endpoint.given(request.scope["query_string"])
        query = endpoint.query(given, time.time_ns())
        media_type = _chosen(request.headers.get("accept", "*/*"), endpoint)
        log.info("audit.query", caller=caller.name, role=caller.role, path=endpoint.path, given=_logged(given))
        if media_type == _EVENTS:
            return await self._follow(caller, query, given, request.headers.get("last-event-id"))
        if not query.columns and not query.counted:
            query = replace(query, columns=query.shape.recorded)
        async with _slot(self._running), self._connect(caller.role) as connection:
            if query.counted:
                return await _counts(connection, query, media_type)
            return await _page(connection, query, media_type, partial(_next, endpoint, given, query))

    async def _follow(self, caller: Caller, query: Query, given: dict[str, str], last: str | None) -> Response:
        query = followed(replace(query, columns=query.columns or query.shape.recorded), given)
        if self._following.locked():
            raise _busy()
        async with self._connect(caller.role) as connection:
            after = await _start(connection, query, last)
        rows = read.follow(partial(self._connect, caller.role), query, after)
        return StreamingResponse(self._events(rows, query.columns), media_type=_EVENTS)

    async def _events(self, rows: AsyncGenerator[asyncpg.Record], columns: Sequence[str]) -> AsyncIterator[str]:
        """Server-Sent Events (WHATWG HTML, section 9.2): the row's leaf is the event's id."""
        async with self._following, aclosing(rows):
            # What is sent first tells that the request was taken.
            yield ":\n\n"
            async for row in _or_silence(rows):
                yield ":\n\n" if row is None else f"id: {row['leaf']}\ndata: {json_text(as_object(row, columns))}\n\n"


def _logged(given: Mapping[str, str]) -> str:
    return json_text({name: value if len(value) <= _LOGGED else f"{value[:_LOGGED]}…" for name, value in given.items()})


def _chosen(accept: str, endpoint: Endpoint) -> str:
    """The first of the media types that are accepted of those that there are (RFC 9110 section 12.5.1)."""
    there = [_JSON, *_FORMS, *([] if endpoint.counted else [_EVENTS])]
    for media_range in accept.split(","):
        name = media_range.partition(";")[0].strip().lower()
        if name in ("*/*", "application/*"):
            return _JSON
        if name in there:
            return name
    raise Problem(HTTPStatus.NOT_ACCEPTABLE, f"there are {', '.join(there)}")


@asynccontextmanager
async def _slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    if slots.locked():
        raise _busy()
    async with slots:
        yield


def _busy() -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "as many are asking as may at a time", retry_after="1")


async def _counts(connection: read.Connection, query: Query, media_type: str) -> Response:
    asked = replace(query, limit=query.limit and query.limit + 1)
    rows = [row async for row in read.counts(connection, asked)]
    columns = (*query.columns, "count")
    shown = rows[: query.limit]
    if media_type == _JSON:
        return _json({"rows": [as_object(row, columns) for row in shown], "more": len(rows) > len(shown)})
    return _written(media_type, columns, shown, {})


async def _page(
    connection: read.Connection, query: Query, media_type: str, next_of: Callable[[object], str]
) -> Response:
    rows, cursor = await read.page(connection, query)
    following = None if cursor is None else next_of(cursor)
    if media_type == _JSON:
        return _json({"rows": [as_object(row, query.columns) for row in rows], "next": following})
    return _written(media_type, query.columns, rows, {"link": f'<{following}>; rel="next"'} if following else {})


def _next(endpoint: Endpoint, given: dict[str, str], query: Query, cursor: object) -> str:
    """Where the next page is: of the same range, although time has gone on since."""
    times = {"since": query.since, "until": query.until}
    fixed = {name: time_text(value) for name, value in times.items() if value is not None}
    return f"{endpoint.path}?{urlencode({**given, **fixed, 'cursor': str(cursor)})}"


def _json(value: object) -> Response:
    return Response(json_text(value) + "\n", media_type=_JSON)


def _written(
    media_type: str, columns: Sequence[str], rows: Sequence[asyncpg.Record], headers: dict[str, str]
) -> Response:
    to = writer(_FORMS[media_type], columns)
    return Response(to.head(rows) + "".join(map(to.line, rows)), headers=headers, media_type=media_type)


# Following ------------------------------------------------------------------------------------------------------------


async def _start(connection: read.Connection, query: Query, last: str | None) -> int:
    """The leaf after which to begin: that of the last event that came, or by time, or the newest."""
    if last is not None:
        if not (last.isascii() and last.isdigit() and len(last) < 19):
            raise InvalidQuery("Last-Event-ID", last, "the id of an event")
        return int(last)
    if query.since is not None:
        return await read.leaf_before(connection, query.since)
    return await read.last_leaf(connection)


async def _or_silence(rows: AsyncGenerator[asyncpg.Record]) -> AsyncIterator[asyncpg.Record | None]:
    """The rows, and nothing where none came for a while."""
    while True:
        coming = asyncio.ensure_future(anext(rows))
        try:
            while not (await asyncio.wait([coming], timeout=KEEP_ALIVE_SECONDS))[0]:
                yield None
            yield coming.result()
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
