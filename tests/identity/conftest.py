from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import SpiffeId, TrustDomain

from peltast.identity.ca.authority import Authority, issue, make_intermediate, make_root
from peltast.identity.svid import Svid, new_key_and_csr

TRUST_DOMAIN = TrustDomain("mesh.example")


@pytest.fixture(scope="session")
def trust_domain() -> TrustDomain:
    return TRUST_DOMAIN


@pytest.fixture(scope="session")
def now() -> datetime:
    """One moment for a whole run, in whole seconds as certificates have them."""
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(scope="session")
def authority(now: datetime) -> Authority:
    return make_intermediate(make_root(TRUST_DOMAIN, now), TRUST_DOMAIN, now)


@pytest.fixture(scope="session")
def new_svid(authority: Authority) -> Callable[[str, datetime], Svid]:
    """Issues an SVID as a node would have it."""

    def new(spiffe_id: str, moment: datetime) -> Svid:
        key, csr = new_key_and_csr()
        return Svid(key, issue(authority, csr, SpiffeId(spiffe_id), moment)[:-1])

    return new


@pytest.fixture(scope="session")
def certificate_named() -> Callable[..., x509.Certificate]:
    """A certificate with the given SANs; without any, it has no such extension."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    start = datetime(2020, 1, 1, tzinfo=UTC)

    def make(*names: x509.GeneralName) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(start)
            .not_valid_after(start.replace(year=2040))
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(key, hashes.SHA256())

    return make
