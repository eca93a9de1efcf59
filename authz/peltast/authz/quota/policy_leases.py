"""Leases of the limits that RateLimitPolicies set for all sidecars together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from peltast.authz.protos.quota_pb2 import BorrowManyRequest, BorrowManyResponse, PolicyBorrow, PolicyLent
from peltast.authz.quota.counters import Counters, CountersAway
from peltast.authz.quota.gcra import Rate
from peltast.authz.quota.lending import MAX_RETURNED, Lending
from peltast.authz.quota.rate_limit_service import InvalidRequest
from peltast.policies.kinds.rate_limit import Limit, RateLimitPolicySpec
from peltast.policies.snapshot import Snapshot

__all__ = ["PolicyLeases"]

MAX_BORROWS = 64
MAX_KEY_BYTES = 1024
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class _Lendable:
    """A limit's rates, and whose sidecars may borrow of it."""

    rates: tuple[Rate, ...]
    holders: frozenset[str]


_Limits = Mapping[tuple[str, int], _Lendable]


class PolicyLeases:
    """Lends tokens of the global limits of one snapshot at a time, to the workloads that they are for."""

    def __init__(self, counters: Counters) -> None:
        self._lending = Lending(counters)
        self._limits: _Limits = {}
        self._before: _Limits = {}

    def take(self, snapshot: Snapshot) -> None:
        """Lends by `snapshot` from now on; by the one before, too, while sidecars still count by it."""
        self._before, self._limits = self._limits, _limits(snapshot)

    async def borrow(self, request: BorrowManyRequest, holder: str) -> BorrowManyResponse:
        """Answers each borrow of `holder`, a SPIFFE ID.

        Raises:
            InvalidRequest: see there.
        """
        if len(request.borrows) > MAX_BORROWS:
            raise InvalidRequest(f"borrows: {len(request.borrows)} are given; at most {MAX_BORROWS} are allowed")
        answers = await asyncio.gather(*(self._answer(borrow, holder) for borrow in request.borrows))
        return BorrowManyResponse(answers=answers)

    async def _answer(self, borrow: PolicyBorrow, holder: str) -> PolicyLent:
        named = borrow.policy, borrow.limit
        limit = self._limits.get(named) or self._before.get(named)
        if limit is None or holder not in limit.holders:
            return PolicyLent(error=f"no global limit {borrow.policy}[{borrow.limit}] is for {holder}")
        if len(borrow.key) > MAX_KEY_BYTES or len(borrow.returned) > MAX_RETURNED:
            return PolicyLent(error=f"at most {MAX_KEY_BYTES} bytes of key and {MAX_RETURNED} leases are allowed")
        key = json.dumps([*named, borrow.key.hex()])
        try:
            lent = await self._lending.exchange(key, limit.rates, borrow.tokens, borrow.returned, holder)
        except CountersAway as error:
            return PolicyLent(error=str(error))
        return PolicyLent(lent=lent)


def _limits(snapshot: Snapshot) -> _Limits:
    holders: dict[tuple[str, int], set[str]] = {}
    rates: dict[tuple[str, int], tuple[Rate, ...]] = {}
    for workload in snapshot.workloads.values():
        for policy in snapshot.applying_to(workload, RateLimitPolicySpec):
            for index, limit in enumerate(policy.spec.limits if policy.spec.is_global else ()):
                holders.setdefault((policy.full_name, index), set()).add(workload.principal)
                rates[policy.full_name, index] = _rates(limit)
    return {named: _Lendable(rates[named], frozenset(who)) for named, who in holders.items()}


def _rates(limit: Limit) -> tuple[Rate, ...]:
    return tuple(Rate(rate.requests, rate.period // _MICROSECOND * 1000, rate.at_once) for rate in limit.rates)
