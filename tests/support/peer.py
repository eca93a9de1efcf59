"""A peer of sidecars that is ours: speaks mutual TLS with an SVID of the running mesh."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from spiffe import SpiffeId, TrustDomain

from peltast.identity.ca.authority import issue
from peltast.identity.ca.store import load_or_create
from peltast.identity.svid import Svid, new_key_and_csr, save_svid

TRUST_DOMAIN = TrustDomain("cluster.local")


def svid_for(state: Path, spiffe_id: str, now: datetime | None = None) -> Svid:
    """An SVID that the mesh's own authority issues at `now`."""
    authority = load_or_create(state / "ca", TRUST_DOMAIN, datetime.now(UTC))
    key, csr = new_key_and_csr()
    return Svid(key, issue(authority, csr, SpiffeId(spiffe_id), now or datetime.now(UTC))[:-1])


def context(folder: Path, svid: Svid | None) -> ssl.SSLContext:
    """TLS 1.3 that shows `svid`."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    if svid is not None:
        save_svid(folder, svid)
        tls.load_cert_chain(folder / "svid.pem")
    return tls


def serial_of(connection_certificate: bytes) -> int:
    """The serial of a certificate in DER."""
    return x509.load_der_x509_certificate(connection_certificate).serial_number
