"""Lending tokens of a key out of the counters, and taking back what was not used."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from peltast.authz.protos.quota_pb2 import BorrowResponse, Returned
from peltast.authz.quota.counters import Counters, Taken
from peltast.authz.quota.gcra import Rate, Unused
from peltast.authz.quota.leases import VALID, Lender, share

__all__ = ["MAX_RETURNED", "VALID_MILLISECONDS", "Lending"]

MAX_RETURNED = 16
_MILLISECOND = 1_000_000
VALID_MILLISECONDS = VALID // _MILLISECOND


class Lending:
    """What is lent out of `counters`. `clock` is monotonic, in nanoseconds."""

    def __init__(self, counters: Counters, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._counters = counters
        self._clock = clock
        self._lender = Lender(lambda: uuid.uuid4().hex)

    async def exchange(
        self, key: str, rates: Sequence[Rate], wanted: int, returned: Iterable[Returned], holder: str
    ) -> BorrowResponse:
        """Takes back what `holder` returns of `key`, and lends what he wants, or as much of it as there is.

        Raises:
            CountersAway: see there.
        """
        for each in returned:
            unused = self._lender.take_back(each.lease, key, holder, each.unused, self._clock())
            if unused.tokens:
                await self._counters.exchange(_bucket(key), rates, 0, unused)
        now = self._clock()
        most = share(list(rates), wanted) if self._lender.has_room(now) else 0
        taken = await self._counters.exchange(_bucket(key), rates, most, Unused(0, 0))
        return self._lend(key, holder, taken, now)

    def _lend(self, key: str, holder: str, taken: Taken, now: int) -> BorrowResponse:
        if not taken.tokens:
            return BorrowResponse(retry_after_milliseconds=-(-taken.wait // _MILLISECOND))
        lease = self._lender.lend(key, holder, taken.tokens, taken.at, now)
        return BorrowResponse(lease=lease, tokens=taken.tokens, valid_milliseconds=VALID_MILLISECONDS)


def _bucket(key: str) -> str:
    return f"lease {key}"
