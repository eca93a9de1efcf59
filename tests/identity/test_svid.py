from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig
from hypothesis import given
from hypothesis import strategies as st

from peltast.identity.files import make_private_folder, write_private
from peltast.identity.sds import BUNDLES_SECRET, SVID_SECRET, secrets
from peltast.identity.svid import Svid, load_svid, new_key_and_csr, rotation_time, save_svid

CATALOG = "spiffe://mesh.example/ns/bookshop/sa/catalog"

NewSvid = Callable[[str, datetime], Svid]


@pytest.fixture
def svid(new_svid: NewSvid, now: datetime) -> Svid:
    return new_svid(CATALOG, now)


def test_a_signing_request_is_of_a_new_key_and_names_nobody() -> None:
    (key, csr), (other, _) = new_key_and_csr(), new_key_and_csr()
    request = x509.load_pem_x509_csr(csr)
    assert request.is_signature_valid
    assert request.public_key() == key.public_key() != other.public_key()
    assert isinstance(key.curve, ec.SECP256R1)
    assert list(request.subject) == []
    assert list(request.extensions) == []


@pytest.mark.parametrize(
    ("jitter", "share"),
    [pytest.param(0.0, 0.4, id="early"), pytest.param(0.5, 0.5, id="half"), pytest.param(1.0, 0.6, id="late")],
)
def test_an_svid_is_rotated_at_half_of_its_life_give_or_take_a_tenth(svid: Svid, jitter: float, share: float) -> None:
    leaf = svid.chain[0]
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert abs(rotation_time(svid, jitter) - (leaf.not_valid_before_utc + life * share)) < timedelta(milliseconds=1)


def test_any_jitter_leaves_time_to_retry(svid: Svid, now: datetime) -> None:
    @given(st.floats(0, 1))
    def check(jitter: float) -> None:
        due = rotation_time(svid, jitter)
        assert now < due
        assert svid.expires - due >= timedelta(minutes=24)

    check()


def test_what_was_saved_is_loaded_by_its_owner_only(tmp_path: Path, svid: Svid, now: datetime) -> None:
    folder = tmp_path / "node"
    save_svid(folder, svid)
    loaded = load_svid(folder, now)
    assert loaded is not None
    assert loaded.chain == svid.chain
    assert loaded.key_pem == svid.key_pem
    assert str(loaded.spiffe_id) == CATALOG
    assert stat.S_IMODE((folder / "svid.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("moment", "found"),
    [
        pytest.param(timedelta(minutes=59), True, id="before its end"),
        pytest.param(timedelta(hours=1), False, id="at its end"),
        pytest.param(timedelta(days=1), False, id="after its end"),
    ],
)
def test_an_expired_svid_is_not_taken_up(
    tmp_path: Path, svid: Svid, now: datetime, moment: timedelta, *, found: bool
) -> None:
    save_svid(tmp_path, svid)
    assert (load_svid(tmp_path, now + moment) is not None) is found


def test_where_nothing_was_saved_nothing_is_loaded(tmp_path: Path, now: datetime) -> None:
    assert load_svid(tmp_path / "missing", now) is None


def test_a_private_file_is_private_whatever_was_there_and_whatever_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for name in ("secret", "secret.new"):
        (tmp_path / name).write_text("old, and readable by everybody")
        (tmp_path / name).chmod(0o666)
    umask = os.umask(0)
    try:
        write_private(file, b"new")
        folder = make_private_folder(tmp_path / "folder")
    finally:
        os.umask(umask)
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not (tmp_path / "secret.new").exists()


def test_a_private_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("untouched")
    (tmp_path / "secret.new").symlink_to(elsewhere)
    write_private(tmp_path / "secret", b"new")
    assert elsewhere.read_text() == "untouched"


def test_envoy_gets_the_svid_and_each_trust_domains_own_roots(svid: Svid) -> None:
    named = secrets(svid, {"mesh.example": b"roots", "a.example": b"other roots"})
    assert named.keys() == {SVID_SECRET, BUNDLES_SECRET} == {"default", "ALL"}
    certificate = named["default"].tls_certificate
    assert certificate.certificate_chain.inline_bytes == svid.chain_pem
    assert certificate.private_key.inline_bytes == svid.key_pem
    validator = SPIFFECertValidatorConfig()
    assert named["ALL"].validation_context.custom_validator_config.typed_config.Unpack(validator)
    roots = [(domain.name, domain.trust_bundle.inline_bytes) for domain in validator.trust_domains]
    assert roots == [("a.example", b"other roots"), ("mesh.example", b"roots")]
