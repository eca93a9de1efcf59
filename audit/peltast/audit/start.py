"""Starts of processes that write audit spools: the keys, and the statement that the agent signs about them.

The root key is sealed (HPKE, RFC 9180) to the collector, so that a process can be started while the collector is away.
Nothing here reads or writes a file, or asks the time.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from google.protobuf.message import DecodeError

from peltast.audit.protos.start_pb2 import Head, Signed, StartStatement

__all__ = ["AuditKeys", "BadStart", "Head", "NewStart", "Statement", "check_start", "key_id", "new_start", "open_root"]

VERSION = 1
MAX_HEADS = 1000
"""Heads in one statement; there are as many spools on disk only after many starts without a collector."""

_MAGIC = b"PLTSTRT1"
_KEY_BYTES = 32
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO = b"peltast audit root"
_SIGNATURE = ec.ECDSA(hashes.SHA256())
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_NS = 253_402_300_799 * 10**9


class BadStart(ValueError):
    """A statement about a start that cannot be trusted."""


@dataclass(frozen=True)
class AuditKeys:
    """What a writer needs of the collector's keys, 32 bytes each."""

    sealing: bytes
    """Public key that root keys are sealed to."""
    hashing: bytes
    """Key that redacted values are hashed with."""

    def __post_init__(self) -> None:
        if (len(self.sealing), len(self.hashing)) != (_KEY_BYTES, _KEY_BYTES):
            raise ValueError(f"audit keys have {len(self.sealing)} and {len(self.hashing)} bytes; 32 are expected")


@dataclass(frozen=True)
class NewStart:
    """A start, before its process."""

    contents: bytes
    """What the process is given, once: secret."""
    hash: bytes
    """By which the next statement names this one."""


@dataclass(frozen=True)
class Statement:
    """What an agent stated about a start, its signature checked."""

    hash: bytes
    previous: bytes
    sealed_root: bytes
    key_id: bytes
    heads: tuple[Head, ...]


def new_start(
    keys: AuditKeys,
    svid_key: ec.EllipticCurvePrivateKey,
    chain: Sequence[x509.Certificate],
    now: datetime,
    previous: bytes = b"",
    heads: Iterable[Head] = (),
) -> NewStart:
    """A start with a new root key, stated by the SVID of `svid_key` and `chain` (the root left out)."""
    root = secrets.token_bytes(_KEY_BYTES)
    statement = StartStatement(
        version=VERSION,
        id=secrets.token_bytes(16),
        time_ns=int((now - _EPOCH).total_seconds()) * 10**9,
        sealed_root=_SUITE.encrypt(root, X25519PublicKey.from_public_bytes(keys.sealing), _INFO),
        key_id=key_id(keys.sealing),
        previous=previous,
        heads=list(heads)[:MAX_HEADS],
        chain=[certificate.public_bytes(Encoding.DER) for certificate in chain],
    ).SerializeToString()
    signed = Signed(statement=statement, signature=svid_key.sign(statement, _SIGNATURE)).SerializeToString()
    return NewStart(_MAGIC + root + keys.hashing + signed, hashlib.sha256(signed).digest())


def check_start(signed: bytes, owner: str, roots: Sequence[x509.Certificate]) -> Statement:
    """What `signed` states, if the SPIFFE ID `owner` signed it with an SVID of one of `roots`.

    The SVID may have ended since: what counts is that it was in force when the statement was made.

    Raises:
        BadStart: it is malformed, or somebody else's.
    """
    try:
        envelope = Signed.FromString(signed)
        stated = StartStatement.FromString(envelope.statement)
        chain = [x509.load_der_x509_certificate(certificate) for certificate in stated.chain]
    except (DecodeError, ValueError) as error:
        raise BadStart(f"the start is malformed: {error}") from error
    if stated.version != VERSION or not chain:
        raise BadStart(f"the start is of version {stated.version} with {len(chain)} certificates; 1 is known")
    _check_chain(chain, roots, _EPOCH.fromtimestamp(min(stated.time_ns, _LAST_NS) / 10**9, UTC))
    if (names := _uri_names(chain[0])) != [owner]:
        raise BadStart(f"the start is by {' '.join(names) or 'nobody'}; {owner} ships it")
    _check_signature(chain[0], envelope)
    digest = hashlib.sha256(signed).digest()
    return Statement(digest, stated.previous, stated.sealed_root, stated.key_id, tuple(stated.heads))


def open_root(statement: Statement, sealing_key: X25519PrivateKey) -> bytes:
    """The root key that `statement` has, sealed to `sealing_key`.

    Raises:
        BadStart: it is sealed to another key, or is no root key.
    """
    try:
        root = _SUITE.decrypt(statement.sealed_root, sealing_key, _INFO)
    except (InvalidTag, ValueError) as error:
        raise BadStart("the start's root key is not sealed to this collector") from error
    if len(root) != _KEY_BYTES:
        raise BadStart(f"the start's root key has {len(root)} bytes; 32 are expected")
    return root


def key_id(public_key: bytes) -> bytes:
    """By which a statement names the key that it is sealed to."""
    return hashlib.sha256(public_key).digest()


def _check_chain(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime) -> None:
    verifier = PolicyBuilder().store(Store(list(roots))).time(at).build_client_verifier()
    try:
        verifier.verify(chain[0], list(chain[1:]))
    except VerificationError as error:
        raise BadStart(f"the start's SVID is not of this trust domain: {error}") from error


def _uri_names(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _check_signature(certificate: x509.Certificate, envelope: Signed) -> None:
    public_key = certificate.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise BadStart("the start's SVID has no ECDSA key")
    try:
        public_key.verify(envelope.signature, envelope.statement, _SIGNATURE)
    except InvalidSignature as error:
        raise BadStart("the start's signature is not by its SVID") from error
