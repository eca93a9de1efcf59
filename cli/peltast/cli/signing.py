"""The key that checkpoints are signed with."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from peltast.audit.checkpoint import Signer, origin_of
from peltast.identity.files import make_private_folder, write_private

__all__ = ["load_or_create_signer", "verifier_key_file"]


def verifier_key_file(state: Path) -> Path:
    """Where the mesh with this state has the public key of its checkpoints."""
    return state / "collector" / "audit" / "signing.pub"


def load_or_create_signer(state: Path, trust_domain: str) -> Signer:
    """The signer of this state's log; its key is made once, and the public one written beside it.

    Raises:
        ValueError: the file with the key holds none of type Ed25519.
    """
    public = verifier_key_file(state)
    file = public.with_name("signing.key")
    if not file.exists():
        make_private_folder(file.parent)
        new = Ed25519PrivateKey.generate()
        write_private(file, new.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key = load_pem_private_key(file.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{file}: this is not an Ed25519 key")
    signer = Signer(origin_of(trust_domain), key)
    public.write_text(f"{signer.verifier_key}\n")
    return signer
