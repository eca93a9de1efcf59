"""The certificate authority: a root, an intermediate, and SVIDs that are checked again before they are handed out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from spiffe import SpiffeId, TrustDomain

from peltast.identity.certificates import spiffe_id_of

__all__ = ["CONTROL_DNS_NAME", "SVID_LIFETIME", "Authority", "BadRequest", "issue", "make_intermediate", "make_root"]

ROOT_LIFETIME = timedelta(days=3650)
INTERMEDIATE_LIFETIME = timedelta(days=365)
SVID_LIFETIME = timedelta(hours=1)

CLOCK_SKEW = timedelta(seconds=30)
"""Certificates are valid from a little before they are made: peers' clocks differ."""

CONTROL_DNS_NAME = "control.peltast.internal"
"""The DNS SAN of the control plane and of nobody else: gRPC clients pin it, for they cannot match a URI SAN."""

CONTROL_PATH = "/peltast/"
"""SPIFFE IDs below this path are the control plane's own."""

MAX_CSR_BYTES = 16 * 1024


class BadRequest(ValueError):
    """A signing request that is refused."""


@dataclass(frozen=True)
class Authority:
    """A certificate with the key that signs by it; `chain` leads from it towards the root, itself first."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own certificate."""
        return self.chain[0]


def make_root(trust_domain: TrustDomain, now: datetime) -> Authority:
    """A new root: self-signed, with the trust domain for its SPIFFE ID (X509-SVID section 3.2)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain.name} root")])
    template = _ca_template(name, name, key, now, ROOT_LIFETIME, trust_domain, path_length=1)
    return Authority(key, (template.sign(key, hashes.SHA256()),))


def make_intermediate(root: Authority, trust_domain: TrustDomain, now: datetime) -> Authority:
    """A new intermediate, signed by `root`, which may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain.name} intermediate")])
    issuer = root.certificate.subject
    template = _ca_template(name, issuer, key, now, INTERMEDIATE_LIFETIME, trust_domain, path_length=0)
    template = template.add_extension(_authority_key_id(root), critical=False)
    return Authority(key, (template.sign(root.key, hashes.SHA256()), *root.chain))


def _ca_template(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
    trust_domain: TrustDomain,
    path_length: int,
) -> x509.CertificateBuilder:
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain.name}")
    return (
        _template(subject, issuer, key.public_key(), now, now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    )


def _template(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - CLOCK_SKEW)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_id(authority: Authority) -> x509.AuthorityKeyIdentifier:
    identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)


def issue(authority: Authority, csr_pem: bytes, spiffe_id: SpiffeId, now: datetime) -> tuple[x509.Certificate, ...]:
    """An X.509-SVID of `spiffe_id` for the key of the signing request, with the chain up to the root.

    Of the request only its key is taken: who asks was established otherwise, and names what it may be.

    Raises:
        BadRequest: the request is malformed, not signed by its own key, or of a key that is not P-256.
    """
    key = _requested_key(csr_pem)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(spiffe_id))]
    if spiffe_id.path.startswith(CONTROL_PATH):
        names.append(x509.DNSName(CONTROL_DNS_NAME))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    end = min(now + SVID_LIFETIME, authority.certificate.not_valid_after_utc)
    leaf = (
        # An empty subject makes the SAN critical (RFC 5280 section 4.2.1.6).
        _template(x509.Name([]), authority.certificate.subject, key, now, end)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_authority_key_id(authority), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    _check_issued(leaf, authority, spiffe_id, now)
    return (leaf, *authority.chain)


def _requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise BadRequest(f"a signing request has {len(csr_pem)} bytes; at most {MAX_CSR_BYTES} are allowed")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        key = csr.public_key()
        signed = csr.is_signature_valid
    except (ValueError, InvalidSignature, TypeError, UnsupportedAlgorithm) as error:
        raise BadRequest(f"not a signing request: {error}") from error
    if not signed:
        raise BadRequest("the signing request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequest("the signing request's key is not P-256")
    return key


def _check_issued(leaf: x509.Certificate, authority: Authority, spiffe_id: SpiffeId, now: datetime) -> None:
    """What was signed is read again: a slip in the template must not leave this process."""
    leaf.verify_directly_issued_by(authority.certificate)
    if spiffe_id_of(leaf) != spiffe_id:
        raise RuntimeError(f"an SVID for {spiffe_id} was issued as {spiffe_id_of(leaf)}")
    if leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise RuntimeError("an SVID was issued as a CA certificate")
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc <= now + SVID_LIFETIME:
        raise RuntimeError("an SVID was issued with another lifetime than was meant")
