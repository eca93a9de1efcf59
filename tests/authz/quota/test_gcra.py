from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.authz.quota.gcra import MAX_AHEAD, SECOND, Rate, Unused, available, give_back, take, wait


def rates() -> st.SearchStrategy[Rate]:
    return st.builds(Rate, st.integers(1, 50), st.integers(50, 5_000), st.integers(1, 40))


@pytest.mark.parametrize(
    ("limit", "period", "burst"),
    [
        (0, SECOND, 1),
        (-1, SECOND, 1),
        (1, SECOND, 0),
        (2, 1, 1),
        (1, 0, 1),
        (1, MAX_AHEAD + 1, 1),
        (1, SECOND, 1 << 60),
    ],
)
def test_a_rate_that_cannot_be_counted_is_refused(limit: int, period: int, burst: int) -> None:
    with pytest.raises(ValueError, match=r"given|takes"):
        Rate(limit, period, burst)


def test_a_bucket_is_emptied_and_fills_again() -> None:
    rate = Rate(limit=2, period=SECOND, burst=3)
    arrival, admitted = 0, []
    for at in (
        0,
        0,
        0,
        0,
        SECOND // 2 - 1,
        SECOND // 2,
        SECOND // 2,
        10 * SECOND,
        10 * SECOND,
        10 * SECOND,
        10 * SECOND,
    ):
        admitted.append(available(rate, arrival, at) > 0)
        if admitted[-1]:
            arrival = take(rate, arrival, at, 1)
    assert admitted == [True, True, True, False, False, True, False, True, True, True, False]
    assert wait(rate, arrival, 10 * SECOND) == SECOND // 2


@given(rates(), st.lists(st.tuples(st.integers(0, 500), st.integers(1, 12)), max_size=40))
def test_no_window_admits_more_than_the_limit_and_the_burst(rate: Rate, asked: list[tuple[int, int]]) -> None:
    now, arrival = 1_000, 0
    admitted: list[tuple[int, int]] = []
    for later, wanted in asked:
        now += later
        tokens = min(wanted, available(rate, arrival, now))
        arrival = take(rate, arrival, now, tokens)
        admitted.append((now, tokens))
    for (begin, _), (end, _) in combinations_with_replacement(admitted, 2):
        inside = sum(tokens for at, tokens in admitted if begin <= at <= end)
        assert inside <= rate.burst + (end - begin) * rate.limit // rate.period


@given(rates(), st.integers(0, 10_000), st.integers(0, 10_000))
def test_after_the_wait_there_is_a_token_and_not_before(rate: Rate, arrival: int, now: int) -> None:
    left = wait(rate, arrival, now)
    assert available(rate, arrival, now + left) >= 1
    if left:
        assert available(rate, arrival, now + left - 1) == 0


@given(rates(), st.lists(st.tuples(st.integers(0, 800), st.integers(0, 12)), max_size=20), st.integers(0, 40))
def test_what_comes_back_never_makes_more_than_if_it_had_not_been_taken(
    rate: Rate, others: list[tuple[int, int]], tokens: int
) -> None:
    """Others take as many tokens in both histories; then the one that had lent is not fuller than the other."""
    now = 1_000
    tokens = min(tokens, rate.burst)
    lent, never = take(rate, 0, now, tokens), 0
    for later, wanted in others:
        now += later
        taken = min(wanted, available(rate, lent, now))
        lent, never = take(rate, lent, now, taken), take(rate, never, now, taken)
    back = give_back(rate, lent, now, Unused(tokens, 1_000))
    assert available(rate, back, now) <= available(rate, never, now)


@given(rates(), st.integers(1, 40))
def test_what_comes_back_at_once_is_there_again(rate: Rate, tokens: int) -> None:
    tokens = min(tokens, rate.burst)
    assert (
        available(rate, give_back(rate, take(rate, 0, 1_000, tokens), 1_000, Unused(tokens, 1_000)), 1_000)
        == rate.burst
    )
