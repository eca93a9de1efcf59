"""The sidecars' own callout: a CheckRequest posted over mutual TLS, a CheckResponse in return, connections kept."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import cast

import httptools
import structlog
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.message import DecodeError

from peltast.authz.check.service import CheckService, NotYours, UnknownDestination

__all__ = ["serve_http"]

MAX_BODY_BYTES = 1024 * 1024
"""Envoy bounds a request's headers to far less, and bodies are not asked about."""

IDLE_SECONDS = 300.0

log = structlog.get_logger()

CallerOf = Callable[[bytes], object]
"""The SPIFFE ID in a certificate (DER); raises ValueError where it has none."""


async def serve_http(
    service: CheckService, host: str, port: int, context: ssl.SSLContext, caller_of: CallerOf
) -> asyncio.Server:
    """Serves `service`; `context` must ask for client certificates."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Connection(service, caller_of), host, port, ssl=context)


class _Connection(asyncio.Protocol):
    """One connection of a sidecar. Requests come one after the other; each is answered before the next is read."""

    def __init__(self, service: CheckService, caller_of: CallerOf) -> None:
        self._service = service
        self._caller_of = caller_of
        self._caller = ""
        self._parser = httptools.HttpRequestParser(self)
        self._body = bytearray()
        self._target = b""
        self._idle: asyncio.TimerHandle | None = None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        try:
            self._caller = str(self._caller_of(tls.getpeercert(binary_form=True) or b""))
        except ValueError as error:
            log.warning("check refused", error=str(error))
            transport.close()
        self._await_request()

    def connection_lost(self, _: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._respond(HTTPStatus.BAD_REQUEST, str(error).encode(), close=True)

    # httptools' side

    def on_message_begin(self) -> None:
        self._body.clear()
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            raise ValueError(f"a CheckRequest has at most {MAX_BODY_BYTES} bytes")

    def on_message_complete(self) -> None:
        self._await_request()
        if self._parser.get_method() != b"POST" or self._target != b"/check":
            self._respond(HTTPStatus.NOT_FOUND, b"POST /check is served here")
            return
        status, body = self._answer(bytes(self._body))
        self._respond(status, body)

    def _answer(self, body: bytes) -> tuple[HTTPStatus, bytes]:
        try:
            response = self._service.check(CheckRequest.FromString(body), self._caller, sidecar=True)
        except NotYours as error:
            return HTTPStatus.FORBIDDEN, str(error).encode()
        except UnknownDestination as error:
            return HTTPStatus.NOT_FOUND, str(error).encode()
        except (DecodeError, ValueError) as error:
            return HTTPStatus.BAD_REQUEST, str(error).encode()
        return HTTPStatus.OK, response.SerializeToString()

    def _respond(self, status: HTTPStatus, body: bytes, *, close: bool = False) -> None:
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: {len(body)}\r\n"
        head += "connection: close\r\n\r\n" if close else "\r\n"
        self._transport.write(head.encode() + body)
        if close:
            self._transport.close()

    def _await_request(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._transport.close)
