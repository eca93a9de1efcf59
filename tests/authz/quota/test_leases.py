from __future__ import annotations

from itertools import count

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from peltast.authz.protos.quota_pb2 import BorrowRequest, Entry, Returned
from peltast.authz.quota.counters import MemoryCounters
from peltast.authz.quota.gcra import SECOND, Rate, Unused
from peltast.authz.quota.lease_service import LeaseService, NoLimit, lending_rate
from peltast.authz.quota.leases import VALID, Borrower, Lease, Lender, share
from peltast.authz.quota.limits import Domain, Limit, Node, Unit
from peltast.authz.quota.rate_limit_service import InvalidRequest

HOLDER = "spiffe://cluster.local/ns/shop/sa/web"


def lender(**given: int) -> Lender:
    numbers = count(1)
    return Lender(lambda: str(next(numbers)), **given)


@pytest.mark.parametrize(
    ("lease", "key", "holder", "at", "tokens"),
    [
        ("1", "key", HOLDER, 5, 3),
        ("2", "key", HOLDER, 5, 0),
        ("1", "other", HOLDER, 5, 0),
        ("1", "key", "spiffe://cluster.local/ns/shop/sa/thief", 5, 0),
        ("1", "key", HOLDER, VALID, 0),
    ],
    ids=["its own", "unknown", "of another key", "another's", "ended"],
)
def test_what_comes_back(lease: str, key: str, holder: str, at: int, tokens: int) -> None:
    lent = lender()
    assert lent.lend("key", HOLDER, 10, 77, 0) == "1"
    back = lent.take_back(lease, key, holder, 3, at)
    assert back.tokens == tokens
    assert not tokens or back == Unused(3, 77)


def test_a_lease_comes_back_once_and_never_with_more_than_it_had() -> None:
    lent = lender()
    lent.lend("key", HOLDER, 10, 77, 0)
    assert lent.take_back("1", "key", HOLDER, 99, 5) == Unused(10, 77)
    assert lent.take_back("1", "key", HOLDER, 10, 5).tokens == 0
    assert lent.outstanding("key", 5) == 0


def test_leases_that_are_out_are_bounded_and_end() -> None:
    lent = lender(max_leases=2)
    for at in (0, 1):
        assert lent.has_room(at)
        lent.lend("key", HOLDER, 5, 0, at)
    assert not lent.has_room(1)
    assert lent.outstanding("key", VALID - 1) == 10
    assert lent.outstanding("key", VALID) == 5
    assert lent.has_room(VALID)


def test_one_lease_is_a_tenth_of_the_burst() -> None:
    assert [share([Rate(100, SECOND, burst)], 50) for burst in (1, 9, 100, 10_000)] == [1, 1, 10, 50]


def test_a_borrower_asks_ahead_of_need_and_gives_up_what_ends() -> None:
    borrower = Borrower()
    assert not borrower.use(0)
    borrower.asked()
    assert borrower.wanted(0) == 2, "twice what was used"
    borrower.receive(Lease("1", 2, VALID))
    assert (borrower.wanted(0), borrower.use(0), borrower.wanted(0)) == (0, True, 0)
    assert borrower.use(0)
    assert borrower.wanted(0) == 2, "nothing is left"
    borrower.receive(Lease("2", 2, 2 * VALID))
    assert borrower.give_up(VALID - 5, within=5) == [Lease("1", 0, VALID)]
    assert not borrower.use(2 * VALID), "what has ended is not used"


STEP = SECOND // 20
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 25), st.integers(0, 6), st.booleans()), min_size=1, max_size=80
)


@given(st.integers(1, 40), st.integers(1, 40), STEPS)
async def test_admitted_is_at_most_the_limit_and_the_outstanding_leases(
    limit: int, burst: int, steps: list[tuple[int, int, int, bool]]
) -> None:
    """Three sidecars, of which some die with their leases: in every window, whatever the borrowers do."""
    now = 1_000 * SECOND
    rate = Rate(limit, SECOND, burst)
    counters, lent = MemoryCounters(lambda: now), lender()
    borrowers = [Borrower(), Borrower(), Borrower()]
    admitted: list[tuple[int, int]] = []
    outstanding: list[tuple[int, int]] = []
    for which, later, uses, dies in steps:
        now += later * STEP
        outstanding.append((now, lent.outstanding("key", now)))
        borrower = borrowers[which]
        admitted.append((now, sum(borrower.use(now) for _ in range(uses))))
        for lease in borrower.give_up(now, within=STEP):
            unused = lent.take_back(lease.id, "key", HOLDER, lease.tokens, now)
            await counters.exchange("key", [rate], 0, unused)
        if wanted := borrower.wanted(now):
            borrower.asked()
            taken = await counters.exchange("key", [rate], share([rate], wanted), Unused(0, 0))
            if taken.tokens:
                borrower.receive(
                    Lease(lent.lend("key", HOLDER, taken.tokens, taken.at, now), taken.tokens, now + VALID)
                )
        if dies:
            borrowers[which] = Borrower()
    event(f"admitted any: {any(tokens for _, tokens in admitted)}")
    for begin, out in outstanding:
        for end, _ in outstanding:
            inside = sum(tokens for at, tokens in admitted if begin <= at <= end)
            assert inside <= burst + max(0, end - begin) * limit // SECOND + out


DOMAINS = {
    "shop": Domain(
        None,
        {
            "user": Node(Limit(100, Unit.MINUTE)),
            "free": Node(Limit(0, None)),
            "shut": Node(Limit(0, Unit.SECOND)),
            "rare": Node(Limit(1, Unit.YEAR)),
        },
    )
}


def asking(key: str = "user", tokens: int = 50, returned: list[Returned] | None = None) -> BorrowRequest:
    return BorrowRequest(domain="shop", entries=[Entry(key=key, value="jo")], tokens=tokens, returned=returned)


async def test_the_service_lends_takes_back_and_says_when_to_ask_again() -> None:
    now = 0
    service = LeaseService(MemoryCounters(lambda: now), lambda: now)
    service.take(DOMAINS)
    lent = [await service.borrow(asking(), HOLDER) for _ in range(11)]
    assert [each.tokens for each in lent] == [10] * 10 + [0]
    assert lent[0].valid_milliseconds == 2_000
    assert lent[-1].retry_after_milliseconds == 600
    assert (await service.borrow(asking("free"), HOLDER)).unlimited
    back = [Returned(lease=lent[0].lease, unused=4)]
    assert (await service.borrow(asking(tokens=10, returned=back), "spiffe://cluster.local/ns/a/sa/thief")).tokens == 0
    assert (await service.borrow(asking(tokens=10, returned=back), HOLDER)).tokens == 4
    assert (await service.borrow(asking(tokens=10, returned=back), HOLDER)).tokens == 0


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asking("stranger"), NoLimit),
        (asking("shut"), NoLimit),
        (asking("rare"), NoLimit),
        (BorrowRequest(domain="elsewhere", entries=[Entry(key="user")]), NoLimit),
        (BorrowRequest(domain="shop", entries=[Entry(key="user")] * 33), InvalidRequest),
        (asking(returned=[Returned(lease="x")] * 17), InvalidRequest),
    ],
)
async def test_what_is_not_lent_is_refused(request_: BorrowRequest, error: type[Exception]) -> None:
    service = LeaseService(MemoryCounters())
    service.take(DOMAINS)
    with pytest.raises(error):
        await service.borrow(request_, HOLDER)


@given(st.integers(1, 2**32 - 1), st.sampled_from(Unit))
def test_a_limit_is_lent_at_its_own_rate(requests: int, unit: Unit) -> None:
    assume(requests <= unit.value * SECOND and requests >= unit.value // (90 * 86_400) + 1)
    rate = lending_rate(Limit(requests, unit))
    assert (rate.limit, rate.period) == (requests, unit.value * SECOND)
    assert 1 <= rate.burst <= requests
