"""Revocations: what is one, and how the list of them is kept."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.authz._engine import Revocations
from peltast.authz.revocation_service import from_message, to_message
from peltast.authz.revocations import MAX_TEXT, InvalidRevocation, Revocation, RevocationList

ISSUER = "https://issuer.example"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "either"),
        ({"subject": "ada"}, "either"),
        ({"token_id": "1", "issued_before": 1}, "either"),
        ({"token_id": "1", "subject": "ada"}, "either"),
        ({"token_id": ""}, "empty"),
        ({"subject": "", "issued_before": 1}, "empty"),
        ({"token_id": "x" * (MAX_TEXT + 1)}, f"{MAX_TEXT} are allowed"),
        ({"issuer": "", "token_id": "1"}, "issuer"),
    ],
)
def test_what_is_no_revocation_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidRevocation, match=says):
        Revocation(**{"issuer": ISSUER, **given})  # type: ignore[arg-type]


TEXT = st.text(min_size=1, max_size=20)
REVOCATIONS = st.one_of(
    st.builds(Revocation, TEXT, token_id=TEXT),
    st.builds(Revocation, TEXT, subject=st.none() | TEXT, issued_before=st.integers(1, 2**40)),
)


@given(REVOCATIONS)
def test_a_revocation_comes_back_as_it_went(revocation: Revocation) -> None:
    assert Revocation.from_json(json.loads(json.dumps(revocation.to_json()))) == revocation
    assert from_message(to_message(revocation)) == revocation


@given(st.lists(REVOCATIONS, unique=True, max_size=5))
def test_what_is_kept_is_what_the_engine_loads_and_what_is_begun_with(made: list[Revocation]) -> None:
    kept: list[bytes] = []
    taken: list[bytes] = []
    revocations = RevocationList(lambda _, document: kept.append(document), taken.append)
    for each in made:
        revocations.revoke(each)
        revocations.revoke(each)
    assert kept == taken
    assert len(kept) == len(made)
    if made:
        assert Revocations.load(kept[-1]).hash
        again = RevocationList(lambda *_: None, lambda _: None)
        again.load(kept[-1])
        assert again.revocations == made


def test_what_cannot_be_kept_does_not_take_effect() -> None:
    taken: list[bytes] = []

    def keep(*_: object) -> None:
        raise OSError("no room")

    revocations = RevocationList(keep, taken.append)
    with pytest.raises(OSError, match="no room"):
        revocations.revoke(Revocation(ISSUER, token_id="1"))
    assert (taken, revocations.revocations) == ([], [])
