"""The node's side of identity: its key, its SVID, and when to get the next one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import SpiffeId

from peltast.identity.certificates import pem, private_key_pem, spiffe_id_of
from peltast.identity.files import make_private_folder, write_private

__all__ = ["Svid", "load_svid", "new_key_and_csr", "rotation_time", "save_svid"]


@dataclass(frozen=True)
class Svid:
    """An X.509-SVID with its private key; the chain leads from the leaf towards the root, the root left out."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]

    @property
    def spiffe_id(self) -> SpiffeId:
        """Whose SVID it is."""
        return spiffe_id_of(self.chain[0])

    @property
    def chain_pem(self) -> bytes:
        """The chain in PEM."""
        return pem(*self.chain)

    @property
    def key_pem(self) -> bytes:
        """The key in PEM."""
        return private_key_pem(self.key)

    @property
    def expires(self) -> datetime:
        """The end of its validity."""
        return self.chain[0].not_valid_after_utc


def new_key_and_csr() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A new key, which never leaves this node, and a signing request for it.

    The request names nobody: who asks is established by the channel.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return key, csr.public_bytes(serialization.Encoding.PEM)


def rotation_time(svid: Svid, jitter: float) -> datetime:
    """When to get the next SVID: at half of the life of this one, give or take a tenth of it.

    `jitter` is from 0 to 1; nodes that started together then do not come back together.
    """
    start, end = svid.chain[0].not_valid_before_utc, svid.chain[0].not_valid_after_utc
    life: timedelta = end - start
    return start + life * (0.4 + 0.2 * jitter)


def save_svid(folder: Path, svid: Svid) -> None:
    """Keeps `svid` on this node, so that a restart needs no control plane. One file: key and chain always match."""
    make_private_folder(folder)
    write_private(folder / "svid.pem", svid.key_pem + svid.chain_pem)


def load_svid(folder: Path, now: datetime) -> Svid | None:
    """The SVID that was kept; none where there is none, or it has expired."""
    file = folder / "svid.pem"
    if not file.exists():
        return None
    content = file.read_bytes()
    key = serialization.load_pem_private_key(content, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    svid = Svid(key, tuple(x509.load_pem_x509_certificates(content)))
    return svid if now < svid.expires else None
