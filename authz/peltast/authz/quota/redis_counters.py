"""Counting in Redis: one for all processes that ask, by Redis's own clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha1, sha256
from importlib.resources import files
from typing import Any

import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from peltast.authz.quota.counters import CountersAway, Hit, Taken
from peltast.authz.quota.gcra import SECOND, Rate, Unused

__all__ = ["RedisCounters", "redis_key"]

_TIMEOUT_SECONDS = 0.5
_SCRIPT = files("peltast.authz.quota").joinpath("gcra.lua").read_text()

Client = redis.asyncio.Redis | redis.asyncio.RedisCluster


def redis_key(name: str) -> str:
    """The key of `name`, which may be long and holds what callers send: its hash, as a hash tag.

    Keys with one tag are in one slot of a cluster, where a script may use them together.
    """
    return f"peltast:quota:{{{sha256(name.encode()).hexdigest()[:32]}}}"


class RedisCounters:
    """Counters in a Redis (6 or later), or in a cluster of them."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client
        self._digest = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, *, cluster: bool) -> AsyncIterator[RedisCounters]:
        """Counters at `url` (``redis://``, ``rediss://`` or ``unix://``), which need not be there yet.

        Raises:
            ValueError: it is no such URL.
        """
        options: dict[str, Any] = {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS}
        kind = redis.asyncio.RedisCluster if cluster else redis.asyncio.Redis
        client: Any = kind.from_url(url, **options)
        try:
            yield cls(client)
        finally:
            await client.aclose()

    async def exchange(self, key: str, rates: Sequence[Rate], wanted: int, unused: Unused) -> Taken:
        """See :class:`peltast.authz.quota.counters.Counters`."""
        keys = [f"{redis_key(key)}:{index}" for index in range(len(rates))]
        arguments = [wanted, unused.tokens, *divmod(unused.taken_at, SECOND)]
        for rate in rates:
            arguments += [rate.interval, rate.burst]
        given, wait, seconds, nanos = map(int, await self._answer(self._run(keys, arguments)))
        return Taken(given, seconds * SECOND + nanos, wait)

    async def count(self, hits: Sequence[Hit]) -> list[int]:
        """See :class:`peltast.authz.quota.counters.Counters`."""
        if not hits:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for hit in hits:
            pipeline.incrby(redis_key(hit.key), hit.hits)
            pipeline.expire(redis_key(hit.key), hit.seconds)
        return [int(counted) for counted in (await self._answer(pipeline.execute()))[::2]]

    async def _run(self, keys: list[str], arguments: list[int]) -> Any:
        try:
            return await self._client.evalsha(self._digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._client.eval(_SCRIPT, len(keys), *keys, *arguments)

    async def _answer(self, asked: Any) -> Any:
        try:
            async with asyncio.timeout(2 * _TIMEOUT_SECONDS):
                return await asked
        except (RedisError, OSError, TimeoutError) as error:
            raise CountersAway(f"Redis: {error or type(error).__name__}") from error
