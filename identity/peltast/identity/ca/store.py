"""The authority's keys and certificates in a folder; keys 0600, made once."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import TrustDomain

from peltast.identity.ca.authority import Authority, make_intermediate, make_root
from peltast.identity.certificates import pem, private_key_pem
from peltast.identity.files import make_private_folder, write_private

__all__ = ["RootKeyMissing", "WrongTrustDomain", "load_or_create"]

RENEW_INTERMEDIATE_BEFORE = timedelta(days=30)


class RootKeyMissing(ValueError):
    """There is a root without its key. A new one would end the trust in the old: that is not done unasked."""


class WrongTrustDomain(ValueError):
    """The folder holds the authority of another trust domain."""


def load_or_create(folder: Path, trust_domain: TrustDomain, now: datetime) -> Authority:
    """The intermediate that signs SVIDs; it and its root are made where they are missing.

    Raises:
        WrongTrustDomain: see there.
        RootKeyMissing: see there.
    """
    make_private_folder(folder)
    root = _load(folder, "root", ())
    if root is None:
        if (folder / "root.pem").exists():
            raise RootKeyMissing(f"{folder} has root.pem, and not its key; bring root.key back, or remove root.pem")
        root = make_root(trust_domain, now)
        _save(folder, "root", root)
    _check_trust_domain(root, trust_domain, folder)
    intermediate = _load(folder, "intermediate", root.chain)
    if intermediate is None or not _is_sound(intermediate, root) or _is_due(intermediate, now):
        intermediate = make_intermediate(root, trust_domain, now)
        _save(folder, "intermediate", intermediate)
    return intermediate


def _is_sound(intermediate: Authority, root: Authority) -> bool:
    """Whether its two files belong together and below `root`: a renewal may have been cut short between them."""
    if intermediate.key.public_key() != intermediate.certificate.public_key():
        return False
    try:
        intermediate.certificate.verify_directly_issued_by(root.certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _is_due(intermediate: Authority, now: datetime) -> bool:
    return intermediate.certificate.not_valid_after_utc - now < RENEW_INTERMEDIATE_BEFORE


def _check_trust_domain(root: Authority, trust_domain: TrustDomain, folder: Path) -> None:
    names = root.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris != [f"spiffe://{trust_domain.name}"]:
        raise WrongTrustDomain(f"{folder} holds the authority of {uris}; {trust_domain.name} is asked for")


def _load(folder: Path, name: str, above: tuple[x509.Certificate, ...]) -> Authority | None:
    key_file, certificate_file = folder / f"{name}.key", folder / f"{name}.pem"
    if not (key_file.exists() and certificate_file.exists()):
        return None
    key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{key_file} does not hold an elliptic curve key")
    return Authority(key, (x509.load_pem_x509_certificate(certificate_file.read_bytes()), *above))


def _save(folder: Path, name: str, authority: Authority) -> None:
    write_private(folder / f"{name}.key", private_key_pem(authority.key))
    write_private(folder / f"{name}.pem", pem(authority.certificate))
