from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import DNSName, PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st
from spiffe import SpiffeId, TrustDomain, X509Svid

from peltast.identity.ca.authority import (
    CONTROL_DNS_NAME,
    INTERMEDIATE_LIFETIME,
    MAX_CSR_BYTES,
    SVID_LIFETIME,
    Authority,
    BadRequest,
    issue,
    make_intermediate,
    make_root,
)
from peltast.identity.certificates import spiffe_id_of
from peltast.identity.svid import Svid, new_key_and_csr

CATALOG = "spiffe://mesh.example/ns/bookshop/sa/catalog"
CONTROL = "spiffe://mesh.example/peltast/control"

NewSvid = Callable[[str, datetime], Svid]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def signing_request(key: Key, *names: x509.GeneralName, subject: str = "") -> bytes:
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


# The profile (X509-SVID sections 2 to 4) ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def leaf(new_svid: NewSvid, now: datetime) -> x509.Certificate:
    return new_svid(CATALOG, now).chain[0]


def test_an_svid_has_exactly_one_uri_san_and_no_other_name(leaf: x509.Certificate) -> None:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(CATALOG)]
    assert str(spiffe_id_of(leaf)) == CATALOG


def test_the_san_of_an_svid_is_critical_for_its_subject_is_empty(leaf: x509.Certificate) -> None:
    assert list(leaf.subject) == []
    assert extension(leaf, x509.SubjectAlternativeName).critical


def test_an_svid_may_sign_data_and_nothing_else(leaf: x509.Certificate) -> None:
    usage = extension(leaf, x509.KeyUsage)
    assert usage.critical
    assert usage.value == x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    assert set(extension(leaf, x509.ExtendedKeyUsage).value) == {  # type: ignore[call-overload]
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }


def test_an_svid_is_no_authority(leaf: x509.Certificate) -> None:
    constraints = extension(leaf, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)


def test_an_svid_is_valid_for_an_hour_from_a_little_before_it_was_made(leaf: x509.Certificate, now: datetime) -> None:
    assert leaf.not_valid_after_utc == now + timedelta(hours=1)
    assert now - timedelta(minutes=1) <= leaf.not_valid_before_utc < now


def test_an_svid_does_not_outlive_its_issuer(authority: Authority, now: datetime) -> None:
    _, csr = new_key_and_csr()
    late = authority.certificate.not_valid_after_utc - timedelta(minutes=10)
    svid = issue(authority, csr, SpiffeId(CATALOG), late)[0]
    assert svid.not_valid_after_utc == authority.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("spiffe_id", "dns"),
    [
        pytest.param(CONTROL, [CONTROL_DNS_NAME], id="the control plane"),
        pytest.param("spiffe://mesh.example/peltast/collector", [CONTROL_DNS_NAME], id="the collector"),
        pytest.param(CATALOG, [], id="a workload"),
        pytest.param("spiffe://mesh.example/peltast", [], id="the path itself"),
        pytest.param("spiffe://mesh.example/peltastic/x", [], id="a path that begins alike"),
        pytest.param("spiffe://mesh.example/ns/peltast/sa/x", [], id="a namespace of this name"),
    ],
)
def test_only_the_control_plane_has_its_dns_name(
    new_svid: NewSvid, now: datetime, spiffe_id: str, dns: list[str]
) -> None:
    names = new_svid(spiffe_id, now).chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == dns
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id]


def test_every_svid_has_another_serial(new_svid: NewSvid, now: datetime) -> None:
    serials = {new_svid(CATALOG, now).chain[0].serial_number for _ in range(20)}
    assert len(serials) == 20


def test_a_standard_library_for_spiffe_reads_the_svid(new_svid: NewSvid, now: datetime) -> None:
    svid = new_svid(CATALOG, now)
    parsed = X509Svid.parse(svid.chain_pem, svid.key_pem)
    assert str(parsed.spiffe_id) == CATALOG
    assert parsed.leaf == svid.chain[0]
    assert len(parsed.cert_chain) == 2


def test_authorities_have_the_trust_domain_for_their_id_and_sign_certificates_only(authority: Authority) -> None:
    intermediate, root = authority.chain
    for certificate, path_length in ((intermediate, 0), (root, 1)):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.UniformResourceIdentifier("spiffe://mesh.example")]
        constraints = extension(certificate, x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value == x509.BasicConstraints(ca=True, path_length=path_length)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


# The chain ------------------------------------------------------------------------------------------------------------


def test_every_certificate_is_issued_by_the_next(authority: Authority, now: datetime) -> None:
    _, csr = new_key_and_csr()
    leaf, intermediate, root = issue(authority, csr, SpiffeId(CATALOG), now)
    leaf.verify_directly_issued_by(intermediate)
    intermediate.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)


def verified_at(moment: datetime, root: x509.Certificate) -> PolicyBuilder:
    return PolicyBuilder().store(Store([root])).time(moment)


def test_a_path_validator_takes_the_chain_while_it_is_valid(
    authority: Authority, new_svid: NewSvid, now: datetime
) -> None:
    leaf, intermediate = new_svid(CATALOG, now).chain
    root = authority.chain[-1]
    verified = verified_at(now, root).build_client_verifier().verify(leaf, [intermediate])
    assert verified.chain == [leaf, intermediate, root]
    assert verified.subjects == [x509.UniformResourceIdentifier(CATALOG)]
    with pytest.raises(VerificationError):
        verified_at(now + SVID_LIFETIME + timedelta(seconds=1), root).build_client_verifier().verify(
            leaf, [intermediate]
        )


def test_a_path_validator_takes_the_control_plane_by_its_dns_name_and_no_workload(
    authority: Authority, new_svid: NewSvid, now: datetime
) -> None:
    verifier = verified_at(now, authority.chain[-1]).build_server_verifier(DNSName(CONTROL_DNS_NAME))
    control, workload = new_svid(CONTROL, now), new_svid(CATALOG, now)
    assert verifier.verify(control.chain[0], [control.chain[1]])[0] == control.chain[0]
    with pytest.raises(VerificationError):
        verifier.verify(workload.chain[0], [workload.chain[1]])


def test_a_path_validator_refuses_the_chain_of_another_root(
    trust_domain: TrustDomain, new_svid: NewSvid, now: datetime
) -> None:
    """Not even of one that has the same name."""
    leaf, intermediate = new_svid(CATALOG, now).chain
    other = make_root(trust_domain, now).certificate
    with pytest.raises(VerificationError):
        verified_at(now, other).build_client_verifier().verify(leaf, [intermediate])


def test_an_intermediate_makes_no_further_authority(
    authority: Authority, trust_domain: TrustDomain, now: datetime
) -> None:
    below = make_intermediate(authority, trust_domain, now)
    _, csr = new_key_and_csr()
    leaf = issue(below, csr, SpiffeId(CATALOG), now)[0]
    with pytest.raises(VerificationError):
        verified_at(now, authority.chain[-1]).build_client_verifier().verify(leaf, [*below.chain[:-1]])


def test_an_expired_authority_issues_nothing(authority: Authority, now: datetime) -> None:
    _, csr = new_key_and_csr()
    with pytest.raises((RuntimeError, ValueError)):
        issue(authority, csr, SpiffeId(CATALOG), now + INTERMEDIATE_LIFETIME + timedelta(hours=1))


# Signing requests -----------------------------------------------------------------------------------------------------


def test_of_a_signing_request_only_the_key_is_taken(authority: Authority, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = [x509.UniformResourceIdentifier(CONTROL), x509.DNSName(CONTROL_DNS_NAME)]
    leaf = issue(authority, signing_request(key, *wanted, subject="admin"), SpiffeId(CATALOG), now)[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(CATALOG)]
    assert list(leaf.subject) == []
    assert leaf.public_key() == key.public_key()


def with_another_signature(csr: bytes) -> bytes:
    """The signing request with the last bit of its signature turned."""
    der = bytearray(x509.load_pem_x509_csr(csr).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    text = base64.encodebytes(bytes(der)).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n".encode()


@pytest.mark.parametrize(
    ("csr", "said"),
    [
        pytest.param(lambda: b"", "not a signing request", id="nothing"),
        pytest.param(lambda: b"\xff garbage", "not a signing request", id="garbage"),
        pytest.param(
            lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "not a signing request",
            id="PEM of garbage",
        ),
        pytest.param(lambda: new_key_and_csr()[1] + b"\n" * MAX_CSR_BYTES, "at most 16384 are allowed", id="too large"),
        pytest.param(lambda: signing_request(rsa.generate_private_key(65537, 2048)), "is not P-256", id="RSA"),
        pytest.param(lambda: signing_request(ec.generate_private_key(ec.SECP384R1())), "is not P-256", id="P-384"),
        pytest.param(lambda: signing_request(ec.generate_private_key(ec.SECP256K1())), "P-256|not a", id="secp256k1"),
        pytest.param(lambda: signing_request(ed25519.Ed25519PrivateKey.generate()), "is not P-256", id="Ed25519"),
        pytest.param(
            lambda: with_another_signature(new_key_and_csr()[1]), "not signed by its own key", id="wrong signature"
        ),
    ],
)
def test_a_bad_signing_request_is_refused_and_told_why(
    authority: Authority, now: datetime, csr: Callable[[], bytes], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        issue(authority, csr(), SpiffeId(CATALOG), now)


CSR = new_key_and_csr()[1]
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = make_root(TrustDomain("mesh.example"), MOMENT)


def assert_refused_or_as_before(csr: bytes) -> None:
    try:
        leaf = issue(ROOT, csr, SpiffeId(CATALOG), MOMENT)[0]
    except BadRequest:
        return
    assert leaf.public_key() == x509.load_pem_x509_csr(CSR).public_key()


@pytest.mark.parametrize("other", [b"+", b"A", b"\0"])
def test_a_request_with_any_one_character_changed_is_refused_or_as_before(other: bytes) -> None:
    for place in range(len(CSR)):
        assert_refused_or_as_before(CSR[:place] + other + CSR[place + 1 :])


@given(
    st.binary(max_size=300)
    | st.tuples(st.integers(0, len(CSR) - 1), st.binary(min_size=1, max_size=8)).map(
        lambda change: CSR[: change[0]] + change[1] + CSR[change[0] + len(change[1]) :]
    )
)
def test_any_bytes_are_an_svids_key_or_a_bad_request(csr: bytes) -> None:
    assert_refused_or_as_before(csr)
