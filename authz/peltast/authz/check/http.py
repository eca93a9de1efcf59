"""The check service over HTTP/1.1 and mutual TLS, connections kept: two ways to ask.

``POST /check`` is the sidecars' own callout: a CheckRequest, a CheckResponse in return. Whatever is below
``/ext_authz`` is a question in the HTTP form of `ext_authz`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast

import httptools
import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from peltast.authz.check.front import Checked, CheckFront
from peltast.authz.check.http_form import PATH_PREFIX, Headers, http_answer, http_question
from peltast.authz.check.service import NotYours, UnknownDestination

__all__ = ["HttpServer"]

MAX_BODY_BYTES = 1024 * 1024
"""Envoy bounds a request's headers to far less, and bodies are not asked about."""

MAX_HEADER_BYTES = 96 * 1024
"""Envoy's own bound is 60 KiB."""

IDLE_SECONDS = 300.0

LINGER_SECONDS = 1.0
"""How long is read on from who sent what is no request."""

QUIET_SECONDS = 0.2
"""How long a connection on which nothing is asked may still be used at the end: a request may be on its way."""

log = structlog.get_logger()

CallerOf = Callable[[asyncio.BaseTransport], object]
"""The SPIFFE ID of whoever is at the other end; raises ValueError where it has none."""

Answer = tuple[int, Headers, bytes]

_PHRASES = {int(status): status.phrase for status in HTTPStatus}

_REFUSALS = (NotYours, UnknownDestination, ValueError)


class HttpServer:
    """Answers by `front`, whoever has an SVID."""

    def __init__(self, front: CheckFront, caller_of: CallerOf) -> None:
        self._front = front
        self._caller_of = caller_of
        self._connections: set[_Connection] = set()

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listens, beside other processes that do. Whom `context` lets in, `caller_of` must tell."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, host, port, ssl=context, reuse_port=True)

    async def drain(self, seconds: float) -> None:
        """Takes no more connections, and ends each that there is once nothing is asked on it, or after `seconds`."""
        self._server.close()
        for connection in self._connections:
            connection.drain()
        if self._connections:
            await asyncio.wait([connection.lost for connection in self._connections], timeout=seconds)

    def _connection(self) -> _Connection:
        return _Connection(self._front, self._caller_of, self._connections)


class _Connection(asyncio.Protocol):
    """One connection. Requests are answered one after the other."""

    def __init__(self, front: CheckFront, caller_of: CallerOf, others: set[_Connection]) -> None:
        self._front = front
        self._caller_of = caller_of
        self._others = others
        self._caller = ""
        self._parser = httptools.HttpRequestParser(self)
        self._asked: deque[_Asked] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._active_at = 0.0
        self._is_clogged = False
        self._ends = False
        self._is_refused = False
        self.lost = asyncio.get_running_loop().create_future()
        """Done once there is no connection any more."""

    def drain(self) -> None:
        """Ends it, once what is asked is answered."""
        self._ends = True
        if self._answering is None:
            asyncio.get_running_loop().call_later(QUIET_SECONDS, self._end_if_quiet)

    def _end_if_quiet(self) -> None:
        if self._answering is None:
            self._transport.close()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._others.add(self)
        try:
            self._caller = str(self._caller_of(transport))
        except ValueError as error:
            log.warning("check refused", error=str(error))
            transport.close()
        self._active_at = asyncio.get_running_loop().time()
        self._end_if_idle()

    def pause_writing(self) -> None:
        """Takes nothing in from a client that does not take its answers."""
        self._is_clogged = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_clogged = False
        if self._answering is None:
            self._transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._others.discard(self)
        self.lost.set_result(None)
        if self._idle is not None:
            self._idle.cancel()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error.__context__))
        except httptools.HttpParserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        """Answers what is no request, and takes no more; what still comes is read, or the answer would be lost."""
        self._front.counts.refuse(self._caller, why)
        self._is_refused = True
        self._respond((status, [], why.encode()))
        asyncio.get_running_loop().call_later(LINGER_SECONDS, self._transport.close)

    # httptools' side

    def on_message_begin(self) -> None:
        self._now = _Asked()

    def on_url(self, url: bytes) -> None:
        self._now.target += url
        self._now.header_bytes += len(url)
        self._now.bound()

    def on_header(self, name: bytes, value: bytes) -> None:
        now = self._now
        now.headers.append((name, value))
        now.header_bytes += len(name) + len(value)
        if now.header_bytes > MAX_HEADER_BYTES:
            now.bound()

    def on_body(self, body: bytes) -> None:
        self._now.body += body
        self._now.bound()

    def on_message_complete(self) -> None:
        self._now.method = self._parser.get_method().decode("latin-1")
        self._active_at = asyncio.get_running_loop().time()
        self._asked.append(self._now)
        if self._answering is None:
            self._answer_all()
        else:  # whoever asks more before it is answered waits
            self._transport.pause_reading()

    def _answer_all(self) -> None:
        """Answers what is asked. A task for each would take longer than most decisions: those are made here."""
        while self._asked and self._answering is None:
            asked = self._asked.popleft()
            try:
                checked, told = self._check(asked)
            except _REFUSALS as error:
                self._respond((_status(error), [], str(error).encode()))
                continue
            if isinstance(checked, CheckResponse):
                self._respond(told(checked))
            else:
                self._answering = asyncio.create_task(self._answer_later(checked, told))

    async def _answer_later(self, checked: Awaitable[CheckResponse], told: Callable[[CheckResponse], Answer]) -> None:
        self._respond(told(await checked))
        self._answering = None
        if not self._transport.is_closing():
            self._answer_all()
        if self._answering is None and not self._is_clogged:
            self._transport.resume_reading()

    def _check(self, asked: _Asked) -> tuple[Checked, Callable[[CheckResponse], Answer]]:
        """What the answer is, or will be, and how it is told."""
        target = asked.target.decode()
        if target.startswith(f"{PATH_PREFIX}/"):
            headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in asked.headers]
            question = http_question(asked.method, target, headers, self._caller)
            return self._front.check(question.SerializeToString(), self._caller), http_answer
        if asked.method == "POST" and target == "/check":
            return self._front.check(bytes(asked.body), self._caller, sidecar=True), _whole
        raise UnknownDestination(f"POST /check and {PATH_PREFIX}/… are served here")

    def _respond(self, answer: Answer) -> None:
        status, headers, body = answer
        lines = [f"HTTP/1.1 {int(status)} {_PHRASES.get(status, '')}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() != "content-length"]
        if self._ends or self._is_refused:
            lines.append("connection: close")
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self._ends:
            self._transport.close()

    def _end_if_idle(self) -> None:
        loop = asyncio.get_running_loop()
        ends_at = self._active_at + IDLE_SECONDS
        if ends_at <= loop.time() and self._answering is None:
            self._transport.close()
        else:
            self._idle = loop.call_at(max(ends_at, loop.time() + 1.0), self._end_if_idle)


class _Asked:
    """One request, as far as it is read."""

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.header_bytes = 0
        """Those of the target among them."""
        self.body = bytearray()

    def bound(self) -> None:
        """Ends the parsing (ValueError) of what is too long."""
        if len(self.body) > MAX_BODY_BYTES:
            raise ValueError(f"a CheckRequest has at most {MAX_BODY_BYTES} bytes")
        if self.header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a request has at most {MAX_HEADER_BYTES} bytes before its body")


def _whole(response: CheckResponse) -> Answer:
    return HTTPStatus.OK, [], response.SerializeToString()


def _status(error: Exception) -> HTTPStatus:
    match error:
        case NotYours():
            return HTTPStatus.FORBIDDEN
        case UnknownDestination():
            return HTTPStatus.NOT_FOUND
        case _:
            return HTTPStatus.BAD_REQUEST
