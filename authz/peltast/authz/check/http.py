"""The check service over HTTP/1.1 and mutual TLS, connections kept: two ways to ask.

``POST /check`` is the sidecars' own callout: a CheckRequest, a CheckResponse in return. Whatever is below
``/ext_authz`` is a question in the HTTP form of `ext_authz`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import httptools
import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.message import DecodeError

from peltast.authz.check.front import CheckFront
from peltast.authz.check.http_form import PATH_PREFIX, Headers, http_answer, http_question
from peltast.authz.check.service import NotYours, UnknownDestination

__all__ = ["HttpServer"]

MAX_BODY_BYTES = 1024 * 1024
"""Envoy bounds a request's headers to far less, and bodies are not asked about."""

MAX_HEADER_BYTES = 96 * 1024
"""Envoy's own bound is 60 KiB."""

IDLE_SECONDS = 300.0

log = structlog.get_logger()

CallerOf = Callable[[bytes], object]
"""The SPIFFE ID in a certificate (DER); raises ValueError where it has none."""

Answer = tuple[int, Headers, bytes]


class HttpServer:
    """Answers by `front`, whoever has an SVID."""

    def __init__(self, front: CheckFront, caller_of: CallerOf) -> None:
        self._front = front
        self._caller_of = caller_of
        self._connections: set[_Connection] = set()

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> None:
        """Listens, beside other processes that do; `context` must ask for client certificates."""
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
        self._ends = False
        self.lost = asyncio.get_running_loop().create_future()
        """Done once there is no connection any more."""

    def drain(self) -> None:
        """Ends it, once what is asked is answered."""
        self._ends = True
        if self._answering is None:
            self._transport.close()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._others.add(self)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        try:
            self._caller = str(self._caller_of(tls.getpeercert(binary_form=True) or b""))
        except ValueError as error:
            log.warning("check refused", error=str(error))
            transport.close()
        self._await_request()

    def connection_lost(self, _: Exception | None) -> None:
        self._others.discard(self)
        self.lost.set_result(None)
        if self._idle is not None:
            self._idle.cancel()
        if self._answering is not None:
            self._answering.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._ends = True
            self._respond((HTTPStatus.BAD_REQUEST, [], str(error).encode()))

    # httptools' side

    def on_message_begin(self) -> None:
        self._now = _Asked()

    def on_url(self, url: bytes) -> None:
        self._now.target += url
        self._now.bound()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._now.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))
        self._now.header_bytes += len(name) + len(value)
        self._now.bound()

    def on_body(self, body: bytes) -> None:
        self._now.body += body
        self._now.bound()

    def on_message_complete(self) -> None:
        self._now.method = self._parser.get_method().decode("latin-1")
        self._await_request()
        self._asked.append(self._now)
        if self._answering is None:
            self._transport.pause_reading()
            self._answering = asyncio.create_task(self._answer_all())

    async def _answer_all(self) -> None:
        while self._asked:
            self._respond(await self._answer(self._asked.popleft()))
        self._answering = None
        if not self._transport.is_closing():
            self._transport.resume_reading()

    async def _answer(self, asked: _Asked) -> Answer:
        try:
            return await self._answer_by_form(asked)
        except NotYours as error:
            return HTTPStatus.FORBIDDEN, [], str(error).encode()
        except UnknownDestination as error:
            return HTTPStatus.NOT_FOUND, [], str(error).encode()
        except (DecodeError, ValueError) as error:
            return HTTPStatus.BAD_REQUEST, [], str(error).encode()

    async def _answer_by_form(self, asked: _Asked) -> Answer:
        target = asked.target.decode("latin-1")
        if target.startswith(f"{PATH_PREFIX}/"):
            question = http_question(asked.method, target, asked.headers, self._caller)
            return http_answer(await self._front.check(question, self._caller))
        if asked.method == "POST" and target == "/check":
            response = await self._front.check(CheckRequest.FromString(bytes(asked.body)), self._caller, sidecar=True)
            return HTTPStatus.OK, [], response.SerializeToString()
        return HTTPStatus.NOT_FOUND, [], f"POST /check and {PATH_PREFIX}/… are served here".encode()

    def _respond(self, answer: Answer) -> None:
        status, headers, body = answer
        lines = [f"HTTP/1.1 {int(status)} {_phrase(status)}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() != "content-length"]
        if self._ends:
            lines.append("connection: close")
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self._ends:
            self._transport.close()

    def _await_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._transport.close)


class _Asked:
    """One request, as far as it is read."""

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.headers: list[tuple[str, str]] = []
        self.header_bytes = 0
        self.body = bytearray()

    def bound(self) -> None:
        """Ends the parsing (ValueError) of what is too long."""
        if len(self.body) > MAX_BODY_BYTES:
            raise ValueError(f"a CheckRequest has at most {MAX_BODY_BYTES} bytes")
        if len(self.target) + self.header_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a request has at most {MAX_HEADER_BYTES} bytes before its body")


def _phrase(status: Any) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus.__members__.values() else ""
