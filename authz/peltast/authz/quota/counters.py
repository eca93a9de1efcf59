"""Where is counted: what every place gives, and counting in this process.

Exceptions::

    Exception
      x CountersAway                they do not answer, or have no room: whoever asks decides by his `onError`
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from peltast.authz.quota import gcra
from peltast.authz.quota.gcra import Rate, Unused

__all__ = ["Counters", "CountersAway", "Hit", "MemoryCounters", "Taken"]

MAX_KEYS = 1_000_000
"""Counters that a process holds, some 200 MB of them."""


class CountersAway(Exception):
    """Counting failed: nothing is known of what is left."""


@dataclass(frozen=True)
class Taken:
    """`tokens` were taken, at `at` by the clock of who counts; `wait` until there is one. All times in nanoseconds."""

    tokens: int
    at: int
    wait: int


@dataclass(frozen=True)
class Hit:
    """Adds `hits` to the counter `key`, which is forgotten `seconds` after that."""

    key: str
    hits: int
    seconds: int


class Counters(Protocol):
    """What is counted, by one clock. Each method is atomic for each key.

    Raises:
        CountersAway: each method does, where nothing can be said.
    """

    async def exchange(self, key: str, rates: Sequence[Rate], wanted: int, unused: Unused) -> Taken:
        """Takes `unused` back into the buckets of `key`, one for each rate; then takes up to `wanted` out of each."""

    async def count(self, hits: Sequence[Hit]) -> list[int]:
        """Counts each of `hits`, in order; what each counter has then."""


class MemoryCounters:
    """Counters of this process. They are lost when it ends."""

    def __init__(self, clock: Callable[[], int] = time.time_ns, max_keys: int = MAX_KEYS) -> None:
        self._clock = clock
        self._max_keys = max_keys
        self._kept: dict[str, tuple[int, int]] = {}
        self._ends: list[tuple[int, str]] = []

    async def exchange(self, key: str, rates: Sequence[Rate], wanted: int, unused: Unused) -> Taken:
        """See :class:`Counters`."""
        now = self._clock()
        self._forget(now)
        keys = [f"{key}:{index}" for index in range(len(rates))]
        buckets = [
            gcra.give_back(rate, self._kept.get(name, (now, 0))[0], now, unused)
            for name, rate in zip(keys, rates, strict=True)
        ]
        tokens = gcra.granted(rates, buckets, now, wanted)
        wait = max(gcra.wait(rate, arrival, now) for rate, arrival in zip(rates, buckets, strict=True))
        taken = [gcra.take(rate, arrival, now, tokens) for rate, arrival in zip(rates, buckets, strict=True)]
        self._keep((name, arrival, arrival) for name, arrival in zip(keys, taken, strict=True))
        return Taken(tokens, now, wait)

    async def count(self, hits: Sequence[Hit]) -> list[int]:
        """See :class:`Counters`."""
        now = self._clock()
        self._forget(now)
        counted = []
        for hit in hits:
            counted.append(self._kept.get(hit.key, (0, 0))[0] + hit.hits)
            self._keep([(hit.key, counted[-1], now + hit.seconds * gcra.SECOND)])
        return counted

    def _keep(self, changed: Iterable[tuple[str, int, int]]) -> None:
        for key, value, end in changed:
            if key not in self._kept:
                if len(self._kept) >= self._max_keys:
                    raise CountersAway(f"{self._max_keys:,} counters are held, which is the most")
                heapq.heappush(self._ends, (end, key))
            self._kept[key] = (value, end)

    def _forget(self, now: int) -> None:
        """Drops what has ended. A counter is once in the heap, by an end that may have moved since."""
        while self._ends and self._ends[0][0] <= now:
            key = heapq.heappop(self._ends)[1]
            if self._kept[key][1] <= now:
                del self._kept[key]
            else:
                heapq.heappush(self._ends, (self._kept[key][1], key))
