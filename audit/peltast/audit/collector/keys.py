"""The collector's keys, made once and kept in a folder of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from peltast.audit.start import AuditKeys

__all__ = ["CollectorKeys", "load_or_create_keys", "load_sealing_key"]

_KEY_BYTES = 32


@dataclass(frozen=True)
class CollectorKeys:
    """What opens starts, and what writers are told."""

    sealing: X25519PrivateKey
    hashing: bytes

    @property
    def public(self) -> AuditKeys:
        """What writers are told."""
        return AuditKeys(self.sealing.public_key().public_bytes_raw(), self.hashing)


def load_sealing_key(folder: Path) -> X25519PrivateKey:
    """The key in `folder` that opens starts.

    Raises:
        OSError: it cannot be read.
        ValueError: the file is no key.
    """
    return X25519PrivateKey.from_private_bytes(_load(folder / "sealing.key"))


def load_or_create_keys(folder: Path) -> CollectorKeys:
    """The keys in `folder`; those that are missing are made.

    Raises:
        ValueError: a file there is no key.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    sealing = _load_or_create(folder / "sealing.key", lambda: X25519PrivateKey.generate().private_bytes_raw())
    hashing = _load_or_create(folder / "hash.key", lambda: secrets.token_bytes(_KEY_BYTES))
    return CollectorKeys(X25519PrivateKey.from_private_bytes(sealing), hashing)


def _load_or_create(path: Path, make: Callable[[], bytes]) -> bytes:
    """Of several processes that make it at once, all get the same one."""
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(make())
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            pass  # another was quicker
        finally:
            temporary.unlink()
    return _load(path)


def _load(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{path} has {len(key)} bytes; a key of {_KEY_BYTES} is expected")
    return key
