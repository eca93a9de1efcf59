"""Checkpoints: a tree's size and hash, signed.

The form is that of C2SP tlog-checkpoint in a C2SP signed-note, with Ed25519 signatures (type 0x01): any verifier of
transparency logs reads them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from peltast.audit.tree import HASH_BYTES

__all__ = [
    "MAX_NOTE",
    "BadCheckpoint",
    "Checkpoint",
    "Signer",
    "VerifierKey",
    "open_checkpoint",
    "open_note",
    "origin_of",
]

MAX_NOTE = 64 * 1024
"""Longest note that is read, in characters."""

_ED25519 = b"\1"
_KEY_ID_BYTES = 4
_LARGEST_SIZE = 2**63 - 1
_NAME = re.compile(r"[^\s+]+")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


class BadCheckpoint(ValueError):
    """Not a checkpoint, or not signed by the key."""


def origin_of(trust_domain: str) -> str:
    """The name of the log, and of the key that signs its checkpoints."""
    return f"peltast.dev/audit/{trust_domain}"


@dataclass(frozen=True)
class Checkpoint:
    """A tree as it stood."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Reads what :attr:`text` wrote; lines that extend it are passed over.

        Raises:
            BadCheckpoint: see there.
        """
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or not _NAME.fullmatch(lines[0]) or not _SIZE.fullmatch(lines[1]):
            raise BadCheckpoint("this is not a checkpoint: origin, size and root hash on a line each are expected")
        size, root = int(lines[1]), _decoded(lines[2])
        if size > _LARGEST_SIZE or len(root) != HASH_BYTES:
            raise BadCheckpoint(f"a checkpoint's root has {HASH_BYTES} bytes and its size at most 63 bits")
        return cls(lines[0], size, root)


@dataclass(frozen=True)
class VerifierKey:
    """The public key that checkpoints are signed with, and its name."""

    name: str
    key: bytes

    @property
    def id(self) -> bytes:
        """What signatures name the key by."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.key).digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.key)}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Reads the signed note's form of a verifier key, ``NAME+ID+KEY``.

        Raises:
            BadCheckpoint: it is not one.
        """
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        data = _decoded(encoded)
        key = cls(name, data[1:])
        if not _NAME.fullmatch(name) or data[:1] != _ED25519 or len(data) != 33 or key.id.hex() != key_id:
            raise BadCheckpoint("this is not an Ed25519 verifier key of the form NAME+ID+KEY")
        return key


class Signer:
    """Signs checkpoints of one log."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verifier_key = VerifierKey(name, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, size: int, root: bytes) -> str:
        """The signed note about the tree of `size` leaves with the hash `root`."""
        text = Checkpoint(self.verifier_key.name, size, root).text
        signature = _base64(self.verifier_key.id + self._key.sign(text.encode()))
        return f"{text}\n— {self.verifier_key.name} {signature}\n"


def open_checkpoint(note: str, key: VerifierKey) -> Checkpoint:
    """The checkpoint in `note`, which `key` signed and which is of the log of the same name.

    Raises:
        BadCheckpoint: see there.
    """
    checkpoint = Checkpoint.parse(open_note(note, key))
    if checkpoint.origin != key.name:
        raise BadCheckpoint(f"it is of the log {checkpoint.origin}, not of {key.name}")
    return checkpoint


def open_note(note: str, key: VerifierKey) -> str:
    """The text of `note`, which `key` signed. Signatures by other keys are passed over.

    Raises:
        BadCheckpoint: see there.
    """
    text, separator, signatures = note.rpartition("\n\n")
    if len(note) > MAX_NOTE or not separator:
        raise BadCheckpoint("this is not a signed note")
    text += "\n"
    prefix = f"— {key.name} "
    found = [_decoded(line.removeprefix(prefix)) for line in signatures.splitlines() if line.startswith(prefix)]
    if not any(_signed(text, signature, key) for signature in found):
        raise BadCheckpoint(f"no signature of it is by the key {key.name}+{key.id.hex()}")
    return text


def _signed(text: str, signature: bytes, key: VerifierKey) -> bool:
    if signature[:_KEY_ID_BYTES] != key.id:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(signature[_KEY_ID_BYTES:], text.encode())
    except InvalidSignature:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadCheckpoint(f"{text[:80]!r} is not Base64") from error
