"""Where quotas are counted: in this process, or in a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from peltast.authz.quota.counters import Counters, MemoryCounters

__all__ = ["counters_at"]


@asynccontextmanager
async def counters_at(redis: str | None, *, cluster: bool = False) -> AsyncIterator[Counters]:
    """Counters in the Redis at `redis`, which need not be there yet; without one, in memory.

    Raises:
        ValueError: `redis` is no such URL.
    """
    if redis is None:
        yield MemoryCounters()
        return
    from peltast.authz.quota.redis_counters import RedisCounters  # few have one

    async with RedisCounters.connect(redis, cluster=cluster) as counters:
        yield counters
