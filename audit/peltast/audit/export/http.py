"""Receivers over HTTP: JSON lines, and OpenTelemetry logs (OTLP/HTTP, https://opentelemetry.io/docs/specs/otlp)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from peltast.audit.export.lines import json_lines
from peltast.audit.export.otlp import accepted, logs_request
from peltast.audit.export.receiver import Entry, Refused, Unavailable

__all__ = ["JsonLinesReceiver", "OtlpReceiver", "retry_after_seconds"]

TIMEOUT_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 300.0

_RETRYABLE = (408, 425, 429, 500, 502, 503, 504)
_OTLP_RETRYABLE = (429, 502, 503, 504)
"""OTLP/HTTP, "Retryable Response Codes"."""


class _HttpReceiver:
    """Posts to `url`. What a server that is not trusted would get, is not sent."""

    def __init__(self, url: str, tls: ssl.SSLContext, headers: Mapping[str, str]) -> None:
        self._url = url
        self._client = httpx.AsyncClient(verify=tls, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def _post(self, content: bytes, content_type: str, retryable: Sequence[int]) -> bytes:
        try:
            response = await self._client.post(self._url, content=content, headers={"content-type": content_type})
        except httpx.HTTPError as error:
            raise Unavailable(f"{self._url}: {error or type(error).__name__}") from error
        if response.is_success:
            return response.content
        what = f"{self._url} answers {response.status_code}"
        if response.status_code in retryable:
            raise Unavailable(what, retry_after_seconds(response.headers.get("retry-after", ""), datetime.now(UTC)))
        raise Refused(what)


class JsonLinesReceiver(_HttpReceiver):
    """Takes OCSF events as JSON lines; a status of 2xx says that it has them."""

    async def send(self, entries: Sequence[Entry]) -> None:
        await self._post(json_lines(entries), "application/x-ndjson", _RETRYABLE)


class OtlpReceiver(_HttpReceiver):
    """An OpenTelemetry Collector, or what speaks as one."""

    async def send(self, entries: Sequence[Entry]) -> None:
        content = logs_request(entries).SerializeToString()
        answer = await self._post(content, "application/x-protobuf", _OTLP_RETRYABLE)
        if reason := accepted(answer):
            raise Refused(f"{self._url}: {reason}")


def retry_after_seconds(header: str, now: datetime) -> float:
    """What ``Retry-After`` (RFC 9110 section 10.2.3) asks for, in seconds or as a date; 0 where it says nothing."""
    try:
        seconds = float(header) if header.isdecimal() else (parsedate_to_datetime(header) - now).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
