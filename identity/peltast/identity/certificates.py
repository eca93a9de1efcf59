"""Certificates as SPIFFE reads them.

https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import SpiffeId
from spiffe.spiffe_id.spiffe_id import SpiffeIdError

__all__ = ["NotAnSvid", "pem", "private_key_pem", "spiffe_id_of"]


class NotAnSvid(ValueError):
    """A certificate that no SPIFFE ID can be read from."""


def spiffe_id_of(certificate: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID of a leaf certificate.

    Raises:
        NotAnSvid: there is not exactly one URI SAN (X509-SVID section 2), or it is no SPIFFE ID.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise NotAnSvid(f"no subject alternative names: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise NotAnSvid(f"{len(uris)} URI SANs; exactly one is expected")
    try:
        spiffe_id = SpiffeId(uris[0])
    except SpiffeIdError as error:
        raise NotAnSvid(str(error)) from error
    if str(spiffe_id) != uris[0]:
        raise NotAnSvid(f"{uris[0]!r} is not written as {spiffe_id} is")
    return spiffe_id


def pem(*certificates: x509.Certificate) -> bytes:
    """The certificates in PEM, one after the other."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key in PEM (PKCS#8), not encrypted: whoever stores it sees to who may read it."""
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())
