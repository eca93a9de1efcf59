"""The generic cell rate algorithm (ITU-T I.371, Annex A), as pure functions of integer nanoseconds.

All that is kept of a bucket is its *theoretical arrival time*: when it will be full again. A token takes one interval
to come back, rounded up to a whole nanosecond, so that rounding never admits more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MAX_AHEAD", "Rate", "Unused", "available", "give_back", "take", "wait"]

SECOND = 1_000_000_000
MAX_AHEAD = 90 * 86_400 * SECOND
"""The longest time that an empty bucket takes to fill, in nanoseconds: Redis counts in doubles, exact up to 2**53."""


@dataclass(frozen=True)
class Rate:
    """`limit` tokens in `period` nanoseconds, and `burst` of them at once.

    Raises:
        ValueError: a number is below 1, more than one token comes in a nanosecond, or an empty bucket takes longer
            than `MAX_AHEAD` to fill.
    """

    limit: int
    period: int
    burst: int

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= self.period or self.burst < 1:
            raise ValueError(f"{self} is given; a limit from 1 to the period, and a burst of 1 or more are allowed")
        if self.full > MAX_AHEAD:
            raise ValueError(f"{self} takes {self.full} ns to fill; at most {MAX_AHEAD} are allowed")

    @property
    def interval(self) -> int:
        """How long one token takes to come back, in nanoseconds."""
        return -(-self.period // self.limit)

    @property
    def full(self) -> int:
        """How long all tokens take to come back, in nanoseconds."""
        return self.burst * self.interval


@dataclass(frozen=True)
class Unused:
    """`tokens` that were taken at `taken_at` (nanoseconds) and come back."""

    tokens: int
    taken_at: int


def available(rate: Rate, arrival: int, now: int) -> int:
    """How many tokens are in the bucket."""
    return max(0, (rate.full - _ahead(arrival, now)) // rate.interval)


def wait(rate: Rate, arrival: int, now: int) -> int:
    """How long until a token is in the bucket, in nanoseconds."""
    return max(0, _ahead(arrival, now) + rate.interval - rate.full)


def take(rate: Rate, arrival: int, now: int, tokens: int) -> int:
    """The arrival time once `tokens` were taken; whoever takes looks first how many there are."""
    return now + _ahead(arrival, now) + tokens * rate.interval


def give_back(rate: Rate, arrival: int, now: int, unused: Unused) -> int:
    """The arrival time once `unused` came back.

    What would have come back by itself since then is not given again: while the tokens were out the bucket may have
    filled up and been emptied, so that they would be admitted twice. The bucket is never fuller than it would be had
    they not been taken.
    """
    elapsed = max(0, now - unused.taken_at)
    return arrival - max(0, unused.tokens * rate.interval - elapsed)


def _ahead(arrival: int, now: int) -> int:
    return max(0, arrival - now)


def granted(rates: Sequence[Rate], arrivals: Sequence[int], now: int, wanted: int) -> int:
    """How many of `wanted` tokens there are in every bucket."""
    return min([wanted, *(available(rate, arrival, now) for rate, arrival in zip(rates, arrivals, strict=True))])
