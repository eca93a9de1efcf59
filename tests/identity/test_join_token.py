from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spiffe import SpiffeId

from peltast.identity.attest import join_token
from peltast.identity.attest.join_token import TOKEN_LIFETIME, JoinTokens

CATALOG = SpiffeId("spiffe://mesh.example/ns/bookshop/sa/catalog")
STOREFRONT = SpiffeId("spiffe://mesh.example/ns/bookshop/sa/storefront")


def test_a_token_is_good_for_the_id_that_it_was_made_for(now: datetime) -> None:
    tokens = JoinTokens()
    catalog, storefront = tokens.generate(CATALOG, now), tokens.generate(STOREFRONT, now)
    assert tokens.redeem(storefront, now) == STOREFRONT
    assert tokens.redeem(catalog, now) == CATALOG


def test_a_token_is_good_once(now: datetime) -> None:
    tokens = JoinTokens()
    token = tokens.generate(CATALOG, now)
    assert tokens.redeem(token, now) == CATALOG
    assert tokens.redeem(token, now) is None


@pytest.mark.parametrize(
    ("after", "good"),
    [
        pytest.param(timedelta(0), True, id="at once"),
        pytest.param(TOKEN_LIFETIME - timedelta(microseconds=1), True, id="at its last moment"),
        pytest.param(TOKEN_LIFETIME, False, id="at its end"),
        pytest.param(timedelta(days=1), False, id="a day later"),
    ],
)
def test_a_token_is_good_for_a_short_time(now: datetime, after: timedelta, *, good: bool) -> None:
    tokens = JoinTokens()
    token = tokens.generate(CATALOG, now)
    assert (tokens.redeem(token, now + after) == CATALOG) is good


def test_an_expired_token_stays_used_when_the_clock_goes_back(now: datetime) -> None:
    tokens = JoinTokens()
    token = tokens.generate(CATALOG, now)
    assert tokens.redeem(token, now + TOKEN_LIFETIME) is None
    assert tokens.redeem(token, now) is None


@given(guess=st.text())
def test_no_other_text_is_a_token(guess: str) -> None:
    moment = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    tokens = JoinTokens()
    token = tokens.generate(CATALOG, moment)
    assert tokens.redeem(guess, moment) is None
    assert tokens.redeem(token + guess, moment) == (None if guess else CATALOG)


def test_tokens_are_long_and_differ(now: datetime) -> None:
    tokens = JoinTokens()
    made = {tokens.generate(CATALOG, now) for _ in range(50)}
    assert len(made) == 50
    assert min(len(token) for token in made) >= 43, "256 bits in Base64"


def test_outstanding_tokens_are_bounded_and_expired_ones_make_room(
    now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join_token, "MAX_OUTSTANDING", 3)
    tokens = JoinTokens()
    first = [tokens.generate(CATALOG, now) for _ in range(3)]
    with pytest.raises(OverflowError, match="3 join tokens"):
        tokens.generate(CATALOG, now)
    assert tokens.redeem(first[0], now) == CATALOG
    tokens.generate(CATALOG, now)
    later = tokens.generate(CATALOG, now + TOKEN_LIFETIME)
    assert tokens.redeem(later, now + TOKEN_LIFETIME) == CATALOG


def test_tokens_themselves_are_not_kept(now: datetime) -> None:
    tokens = JoinTokens()
    token = tokens.generate(CATALOG, now)
    assert token not in repr(vars(tokens))
