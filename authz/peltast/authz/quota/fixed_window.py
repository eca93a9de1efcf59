"""Fixed windows, as envoyproxy/ratelimit counts: each unit of time, counted from 1970, has a counter of its own."""

from __future__ import annotations

from peltast.authz.quota.limits import Unit

__all__ = ["seconds_left", "window"]


def window(unit: Unit, now: int) -> int:
    """When the window that `now` is in began. Both in seconds since 1970."""
    return now - now % unit.value


def seconds_left(unit: Unit, now: int) -> int:
    """How long until the next window."""
    return unit.value - now % unit.value
