"""Leases: tokens that are taken out of the counters ahead of need. Pure, with the time as an argument.

A lender gives tokens for a while, and knows what is out; a borrower decides by them without asking. Tokens that are
out were counted when they were lent, so that what all borrowers admit in any time is at most what the limit admits
in it, and the tokens that were out when it began.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from peltast.authz.quota.gcra import SECOND, Rate, Unused

__all__ = ["Borrower", "Lease", "Lender", "share"]

VALID = 2 * SECOND
"""How long tokens may be used, in nanoseconds. What a borrower that dies has not used is lost."""
MAX_LEASES = 100_000
_SHARE = 10
"""One lease has at most this part of a burst, so that no borrower takes all."""


def share(rates: list[Rate], wanted: int) -> int:
    """How many of `wanted` tokens one lease may have."""
    return min([wanted, *(max(1, rate.burst // _SHARE) for rate in rates)])


@dataclass(frozen=True)
class Lent:
    """What a lender knows of a lease that is out. Times in nanoseconds, `taken_at` by the clock of the counters."""

    key: str
    holder: str
    tokens: int
    taken_at: int
    ends: int


class Lender:
    """The leases that are out, by their ids."""

    def __init__(self, new_id: Callable[[], str], max_leases: int = MAX_LEASES) -> None:
        self._new_id = new_id
        self._max_leases = max_leases
        self._out: dict[str, Lent] = {}

    def has_room(self, now: int) -> bool:
        """Whether one more can be lent; forgets those that have ended."""
        # In order of their ends, for all are equally long.
        while self._out and (first := next(iter(self._out.items())))[1].ends <= now:
            del self._out[first[0]]
        return len(self._out) < self._max_leases

    def lend(self, key: str, holder: str, tokens: int, taken_at: int, now: int) -> str:
        """Notes that `holder` has `tokens` of `key`; the id of the lease."""
        lease = self._new_id()
        self._out[lease] = Lent(key, holder, tokens, taken_at, now + VALID)
        return lease

    def take_back(self, lease: str, key: str, holder: str, unused: int, now: int) -> Unused:
        """What comes back of `lease`: nothing, if it has ended, was given back before, or is another's."""
        lent = self._out.get(lease)
        if lent is None or (lent.key, lent.holder) != (key, holder):
            return Unused(0, 0)
        del self._out[lease]
        return Unused(min(unused, lent.tokens) if now < lent.ends else 0, lent.taken_at)

    def outstanding(self, key: str, now: int) -> int:
        """Tokens of `key` that may still be used without being asked for."""
        return sum(lent.tokens for lent in self._out.values() if lent.key == key and now < lent.ends)


@dataclass
class Lease:
    """Tokens that may be used until `ends` (nanoseconds, by the borrower's clock)."""

    id: str
    tokens: int
    ends: int


@dataclass
class Borrower:
    """One sidecar's tokens of one key.

    It wants as many as it has used since it last asked, twice over, and asks when less than half of that is left.
    """

    leases: list[Lease] = field(default_factory=list)
    _used: int = 0
    _aim: int = 1

    def use(self, now: int) -> bool:
        """Whether a request is admitted: takes a token, of the lease that ends first."""
        self._used += 1
        for lease in self.leases:
            if lease.tokens and now < lease.ends:
                lease.tokens -= 1
                return True
        return False

    def wanted(self, now: int) -> int:
        """How many tokens to borrow now; 0 if there are enough."""
        left = sum(lease.tokens for lease in self.leases if now < lease.ends)
        return max(0, self._aim - left) if 2 * left < self._aim else 0

    def asked(self) -> None:
        """Begins to measure anew how many are used."""
        self._aim = max(1, 2 * self._used)
        self._used = 0

    def receive(self, lease: Lease) -> None:
        """Takes in what was lent."""
        self.leases.append(lease)
        self.leases.sort(key=lambda each: each.ends)

    def give_up(self, now: int, within: int) -> list[Lease]:
        """The leases that end `within` that time: they are used no more, and their tokens go back."""
        over = [lease for lease in self.leases if lease.ends - within <= now]
        self.leases = [lease for lease in self.leases if lease.ends - within > now]
        return over
