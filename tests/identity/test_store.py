from __future__ import annotations

import stat
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from spiffe import SpiffeId, TrustDomain

from peltast.identity.ca.authority import INTERMEDIATE_LIFETIME, Authority, issue
from peltast.identity.ca.store import RENEW_INTERMEDIATE_BEFORE, RootKeyMissing, WrongTrustDomain, load_or_create
from peltast.identity.svid import new_key_and_csr

CATALOG = SpiffeId("spiffe://mesh.example/ns/bookshop/sa/catalog")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "authority"


def assert_works(authority: Authority, now: datetime) -> None:
    leaf, intermediate, root = issue(authority, new_key_and_csr()[1], CATALOG, now)
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)


def test_what_is_made_is_its_owners_only(folder: Path, trust_domain: TrustDomain, now: datetime) -> None:
    assert_works(load_or_create(folder, trust_domain, now), now)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert modes == dict.fromkeys(("root.key", "root.pem", "intermediate.key", "intermediate.pem"), 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_restart_finds_the_same_authority(folder: Path, trust_domain: TrustDomain, now: datetime) -> None:
    made = load_or_create(folder, trust_domain, now)
    found = load_or_create(folder, trust_domain, now + timedelta(days=100))
    assert found.chain == made.chain
    assert found.key.private_numbers() == made.key.private_numbers()
    assert_works(found, now)


def test_the_authority_of_another_trust_domain_is_not_used(
    folder: Path, trust_domain: TrustDomain, now: datetime
) -> None:
    load_or_create(folder, trust_domain, now)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(WrongTrustDomain, match=r"spiffe://mesh\.example.*other\.example is asked for"):
        load_or_create(folder, TrustDomain("other.example"), now)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("left", "renewed"),
    [
        pytest.param(RENEW_INTERMEDIATE_BEFORE + timedelta(seconds=1), False, id="a little early"),
        pytest.param(RENEW_INTERMEDIATE_BEFORE - timedelta(seconds=1), True, id="in time"),
        pytest.param(timedelta(days=-1), True, id="after its end"),
    ],
)
def test_an_intermediate_is_renewed_before_its_end_under_the_same_root(
    folder: Path, trust_domain: TrustDomain, now: datetime, left: timedelta, *, renewed: bool
) -> None:
    first = load_or_create(folder, trust_domain, now)
    later = now + INTERMEDIATE_LIFETIME - left
    second = load_or_create(folder, trust_domain, later)
    assert (second.certificate != first.certificate) is renewed
    assert second.chain[-1] == first.chain[-1]
    assert_works(second, later)
    assert load_or_create(folder, trust_domain, later).chain == second.chain


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(("intermediate.key",), id="the intermediate's key"),
        pytest.param(("intermediate.pem",), id="the intermediate's certificate"),
        pytest.param(("root.pem",), id="the root's certificate: nobody was shown it"),
        pytest.param(("root.key", "root.pem"), id="the root"),
    ],
)
def test_what_is_missing_is_made_again_and_fits_the_rest(
    folder: Path, trust_domain: TrustDomain, now: datetime, gone: tuple[str, ...]
) -> None:
    load_or_create(folder, trust_domain, now)
    for name in gone:
        (folder / name).unlink()
    assert_works(load_or_create(folder, trust_domain, now), now)


def test_a_root_whose_key_is_gone_is_not_replaced_unasked(
    folder: Path, trust_domain: TrustDomain, now: datetime
) -> None:
    load_or_create(folder, trust_domain, now)
    (folder / "root.key").unlink()
    with pytest.raises(RootKeyMissing, match=r"bring root\.key back"):
        load_or_create(folder, trust_domain, now)


def test_a_renewal_that_was_cut_short_between_its_two_files_is_done_again(
    folder: Path, trust_domain: TrustDomain, now: datetime
) -> None:
    load_or_create(folder, trust_domain, now)
    other = load_or_create(folder.parent / "other", trust_domain, now)
    new_key = other.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "intermediate.key").write_bytes(new_key)
    assert_works(load_or_create(folder, trust_domain, now), now)
