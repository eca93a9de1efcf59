"""Leases over gRPC, out of the limits of the descriptor configuration, by GCRA. No network here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from peltast.authz.protos.quota_pb2 import BorrowRequest, BorrowResponse
from peltast.authz.quota.counters import Counters
from peltast.authz.quota.gcra import MAX_AHEAD, SECOND, Rate
from peltast.authz.quota.lending import MAX_RETURNED, VALID_MILLISECONDS, Lending
from peltast.authz.quota.limits import Domain, Limit, find
from peltast.authz.quota.rate_limit_service import MAX_ENTRIES, InvalidRequest

__all__ = ["LeaseService", "NoLimit"]


class NoLimit(LookupError):
    """The descriptor has no limit, or one that is not lent."""


class LeaseService:
    """Lends tokens of the limits that were taken last. `clock` is monotonic, in nanoseconds."""

    def __init__(self, counters: Counters, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._lending = Lending(counters, clock)
        self._domains: Mapping[str, Domain] = {}

    def take(self, domains: Mapping[str, Domain]) -> None:
        """Lends by `domains` from now on."""
        self._domains = domains

    async def borrow(self, request: BorrowRequest, holder: str) -> BorrowResponse:
        """Takes back what `holder` returns, and lends what he wants, or as much of it as there is.

        Raises:
            InvalidRequest: see there.
            NoLimit: see there.
            CountersAway: see there.
        """
        limit = self._limit(request)
        if limit.unit is None:
            return BorrowResponse(unlimited=True, valid_milliseconds=VALID_MILLISECONDS)
        key = json.dumps([request.domain, [(entry.key, entry.value) for entry in request.entries]])
        return await self._lending.exchange(key, [lending_rate(limit)], request.tokens, request.returned, holder)

    def _limit(self, request: BorrowRequest) -> Limit:
        for name, given, most in (
            ("entries", request.entries, MAX_ENTRIES),
            ("returned", request.returned, MAX_RETURNED),
        ):
            if len(given) > most:
                raise InvalidRequest(f"{name}: {len(given)} are given; at most {most} are allowed")
        domain = self._domains.get(request.domain)
        limit = find(domain, [(entry.key, entry.value) for entry in request.entries]) if domain else None
        if limit is None:
            raise NoLimit(f"no limit of the domain {request.domain!r} is for these entries")
        return limit


def lending_rate(limit: Limit) -> Rate:
    """`limit` as a rate whose burst is all of it, but for those that take longer to come back than can be counted.

    Raises:
        NoLimit: nothing is allowed, or a single token takes too long.
    """
    assert limit.unit is not None, "unlimited ones are not counted"
    period = limit.unit.value * SECOND
    if not limit.requests_per_unit or limit.requests_per_unit > period:
        raise NoLimit(f"{limit.requests_per_unit} requests a {limit.unit.name.lower()} are not lent")
    burst = min(limit.requests_per_unit, MAX_AHEAD // -(-period // limit.requests_per_unit))
    if not burst:
        raise NoLimit(f"{limit.requests_per_unit} requests a {limit.unit.name.lower()} are not lent: ask for each")
    return Rate(limit.requests_per_unit, period, burst)
