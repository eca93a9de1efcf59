"""Certificates that must not get anybody in, made as an attacker would have them."""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import SpiffeId

from peltast.identity.ca.authority import Authority, issue, make_intermediate, make_root
from peltast.identity.files import write_private
from peltast.identity.svid import Svid, new_key_and_csr

__all__ = ["client_context", "svid_of_another_authority", "svid_with_two_names"]

_DIGITAL_SIGNATURE = x509.KeyUsage(
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


def client_context(svid: Svid | None) -> ssl.SSLContext:
    """TLS 1.3 that shows `svid` and does not care who answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if svid is not None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "svid.pem"
            write_private(file, svid.key_pem + svid.chain_pem)
            context.load_cert_chain(file)
    return context


def svid_of_another_authority(spiffe_id: SpiffeId) -> Svid:
    """An SVID with the right name, of an authority that calls itself by the right name."""
    now = datetime.now(UTC)
    authority = make_intermediate(make_root(spiffe_id.trust_domain, now), spiffe_id.trust_domain, now)
    key, csr = new_key_and_csr()
    return Svid(key, issue(authority, csr, spiffe_id, now)[:-1])


def svid_with_two_names(authority: Authority, first: SpiffeId, second: SpiffeId) -> Svid:
    """A certificate with two URI SANs, signed by the mesh's own authority: what no SVID may be."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    names = [x509.UniformResourceIdentifier(str(spiffe_id)) for spiffe_id in (first, second)]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=10))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(_DIGITAL_SIGNATURE, critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    return Svid(key, (leaf, *authority.chain[:-1]))
