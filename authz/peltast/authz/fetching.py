"""Questions over HTTP for key sets and bundles: who is asked and how, and how much of an answer is read."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

__all__ = ["FAILURES", "ask", "open_client", "read_body"]

FAILURES = (ValueError, TimeoutError, httpx.HTTPError, httpx.InvalidURL)
"""What becomes of an attempt where there is no answer, or none that is taken."""


def open_client(accept: str, longest: float, connections: int | None = 100) -> httpx.AsyncClient:
    """A client for one kind of answer, of whom nothing takes longer than `longest` seconds.

    Neither proxies nor passwords from the environment: what is asked, and how, is what the policy says.
    """
    return httpx.AsyncClient(
        verify=ssl.create_default_context(),
        trust_env=False,
        headers={"accept": accept, "accept-encoding": "identity"},
        timeout=longest,
        limits=httpx.Limits(max_connections=connections),
    )


@asynccontextmanager
async def ask(
    client: httpx.AsyncClient, url: str, seconds: float, headers: Mapping[str, str] | None = None
) -> AsyncIterator[httpx.Response]:
    """The answer to one question, which is to be read within `seconds` of asking.

    Raises:
        TimeoutError: it took longer.
        httpx.HTTPError: the server could not be reached, or is not who it should be.
    """
    try:
        async with asyncio.timeout(seconds), client.stream("GET", url, headers=headers) as response:
            yield response
    except TimeoutError:
        raise TimeoutError(f"the server does not answer within {seconds:g} s") from None


async def read_body(response: httpx.Response, most: int) -> bytes:
    """The body of an answer, of at most `most` bytes.

    Raises:
        ValueError: it has more, an encoding, or another status than 200.
    """
    if response.status_code != httpx.codes.OK:
        target = response.headers.get("location")
        answered = f"the server answers {response.status_code}{f', to {target}' if target else ''}"
        raise ValueError(f"{answered}; 200 is expected, and redirects are not followed")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise ValueError("the server answers in an encoding that was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most:
            raise ValueError(f"the server answers more than {most} bytes")
    return bytes(body)
