"""Rate Limit Service v3: what envoyproxy/ratelimit answers to the same requests. No network here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.extensions.common.ratelimit.v3.ratelimit_pb2 import RateLimitDescriptor
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from envoy.type.v3.ratelimit_unit_pb2 import RateLimitUnit
from google.protobuf.duration_pb2 import Duration

from peltast.authz.quota.counters import Counters, Hit
from peltast.authz.quota.fixed_window import seconds_left, window
from peltast.authz.quota.limits import Domain, Entry, Limit, Unit, find

__all__ = ["InvalidRequest", "RateLimitService"]

MAX_DESCRIPTORS = 64
MAX_ENTRIES = 32
MAX_HITS = 2**32 - 1
MAX_UINT32 = 2**32 - 1


class InvalidRequest(ValueError):
    """A request that cannot be answered."""


@dataclass(frozen=True)
class _Asked:
    """One descriptor of a request."""

    entries: tuple[Entry, ...]
    hits: int
    limit: Limit | None

    @property
    def counted(self) -> tuple[Limit, Unit] | None:
        """Its limit and the unit of that; none where nothing is counted."""
        limit = self.limit
        return (limit, limit.unit) if limit is not None and limit.unit is not None else None


class RateLimitService:
    """Answers by the domains that were taken last."""

    def __init__(self, counters: Counters, clock: Callable[[], float] = time.time) -> None:
        self._counters = counters
        self._clock = clock
        self._domains: Mapping[str, Domain] = {}

    def take(self, domains: Mapping[str, Domain]) -> None:
        """Answers by `domains` from now on."""
        self._domains = domains

    async def answer(self, request: RateLimitRequest) -> RateLimitResponse:
        """Counts and answers `request`.

        Raises:
            InvalidRequest: see there.
            CountersAway: see there.
        """
        asked = _without_replaced(self._read(request))
        now = int(self._clock())
        hits = [
            Hit(_key(request.domain, each, counted[1], now), each.hits, counted[1].value)
            for each in asked
            if (counted := each.counted)
        ]
        numbers = iter(await self._counters.count(hits))
        return _response([_status(each, next(numbers) if each.counted else 0, now) for each in asked])

    def _read(self, request: RateLimitRequest) -> list[_Asked]:
        if not request.domain:
            raise InvalidRequest("domain: nothing is given; the field is required")
        _bounded("descriptors", len(request.descriptors), 1, MAX_DESCRIPTORS)
        domain = self._domains.get(request.domain)
        return [_read_descriptor(domain, each, request.hits_addend) for each in request.descriptors]


def _read_descriptor(domain: Domain | None, descriptor: RateLimitDescriptor, request_hits: int) -> _Asked:
    """As the original: what a request itself says of a limit counts only in a domain that is known."""
    _bounded("entries", len(descriptor.entries), 0, MAX_ENTRIES)
    entries = tuple((entry.key, entry.value) for entry in descriptor.entries)
    hits = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else max(1, request_hits)
    _bounded("hits_addend", hits, 0, MAX_HITS)
    if domain is None:
        return _Asked(entries, hits, None)
    limit = _override(descriptor) if descriptor.HasField("limit") else find(domain, entries)
    return _Asked(entries, hits, limit)


def _bounded(name: str, given: int, least: int, most: int) -> None:
    if not least <= given <= most:
        raise InvalidRequest(f"{name}: {given} is given; {least} to {most} are allowed")


def _override(descriptor: RateLimitDescriptor) -> Limit:
    name = RateLimitUnit.Name(descriptor.limit.unit) if descriptor.limit.unit in RateLimitUnit.values() else "UNKNOWN"
    if name not in Unit.__members__:
        raise InvalidRequest(f"limit.unit: {descriptor.limit.unit} is given; allowed are {', '.join(Unit.__members__)}")
    return Limit(descriptor.limit.requests_per_unit, Unit[name])


def _without_replaced(asked: Sequence[_Asked]) -> list[_Asked]:
    """A limit that another one of the same request replaces is as if it were not there."""
    replaced = {name for each in asked if each.limit for name in each.limit.replaces}
    return [replace(each, limit=None) if each.counted and each.counted[0].name in replaced else each for each in asked]


def _key(domain: str, asked: _Asked, unit: Unit, now: int) -> str:
    return json.dumps([domain, asked.entries, window(unit, now)])


def _status(asked: _Asked, number: int, now: int) -> RateLimitResponse.DescriptorStatus:
    if asked.counted is None:
        unlimited = asked.limit is not None
        return RateLimitResponse.DescriptorStatus(
            code=RateLimitResponse.OK, limit_remaining=MAX_UINT32 if unlimited else 0
        )
    limit, unit = asked.counted
    over = number > limit.requests_per_unit
    return RateLimitResponse.DescriptorStatus(
        code=RateLimitResponse.OVER_LIMIT if over and not limit.shadow_mode else RateLimitResponse.OK,
        current_limit=RateLimitResponse.RateLimit(
            name=limit.name,
            requests_per_unit=limit.requests_per_unit,
            unit=RateLimitResponse.RateLimit.Unit.Value(unit.name),
        ),
        limit_remaining=0 if over else limit.requests_per_unit - number,
        duration_until_reset=Duration(seconds=seconds_left(unit, now)),
    )


def _response(statuses: Sequence[RateLimitResponse.DescriptorStatus]) -> RateLimitResponse:
    over = [status for status in statuses if status.code == RateLimitResponse.OVER_LIMIT]
    limited = [each for each in statuses if each.HasField("current_limit") and each.limit_remaining < MAX_UINT32]
    # What callers are told is about the limit that is nearest: the last that is exceeded, or that with least left.
    nearest = over[-1] if over else min(limited, key=lambda status: status.limit_remaining, default=None)
    return RateLimitResponse(
        overall_code=RateLimitResponse.OVER_LIMIT if over else RateLimitResponse.OK,
        statuses=statuses,
        response_headers_to_add=_headers(nearest) if nearest else [],
    )


def _headers(status: RateLimitResponse.DescriptorStatus) -> list[HeaderValue]:
    values = {
        "RateLimit-Limit": status.current_limit.requests_per_unit,
        "RateLimit-Remaining": status.limit_remaining,
        "RateLimit-Reset": status.duration_until_reset.seconds,
    }
    return [HeaderValue(key=name, value=str(value)) for name, value in values.items()]
