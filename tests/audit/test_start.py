"""What an agent states about a start of its process, and who believes it."""

from __future__ import annotations

import dataclasses
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from support.starts import KEYS, PRINCIPAL, keyring, svid

from peltast.audit.collector.keys import load_or_create_keys
from peltast.audit.protos.start_pb2 import Signed, StartStatement
from peltast.audit.start import AuditKeys, BadStart, Head, check_start, key_id, new_start, open_root
from peltast.authz._engine import SpoolStart

IDENTITY = svid(PRINCIPAL)
ROOTS = keyring().roots
NOW = datetime.now(UTC)
HEAD = Head(spool=b"s" * 16, sequence=7, link=b"l" * 32)
SECRET_BYTES = 72
"""Magic, root key and hash key, before the statement."""


def make(**other: Any) -> bytes:
    return new_start(KEYS.public, IDENTITY.key, IDENTITY.chain, **{"now": NOW, **other}).contents


def resigned(contents: bytes, key: ec.EllipticCurvePrivateKey, **changes: Any) -> bytes:
    """The statement in `contents`, changed and signed with `key`."""
    stated = StartStatement.FromString(Signed.FromString(contents[SECRET_BYTES:]).statement)
    for name, value in changes.items():
        stated.ClearField(name)
        stated.MergeFrom(StartStatement(**{name: value}))
    statement = stated.SerializeToString()
    return Signed(statement=statement, signature=key.sign(statement, ec.ECDSA(hashes.SHA256()))).SerializeToString()


def test_what_is_stated_is_read_and_its_root_opens() -> None:
    first = new_start(KEYS.public, IDENTITY.key, IDENTITY.chain, NOW)
    contents = make(previous=first.hash, heads=[HEAD])
    statement = check_start(contents[SECRET_BYTES:], PRINCIPAL, ROOTS)
    assert (statement.previous, statement.heads) == (first.hash, (HEAD,))
    assert statement.key_id == key_id(KEYS.public.sealing)
    assert open_root(statement, KEYS.sealing) == contents[8:40]
    assert contents[40:72] == KEYS.hashing
    SpoolStart(contents)


def test_the_root_is_nowhere_in_what_is_stated() -> None:
    contents = make()
    assert contents[8:40] not in contents[SECRET_BYTES:]
    assert make()[8:40] != contents[8:40]


OTHER = svid(PRINCIPAL + "-other")
FOREIGN = svid("spiffe://elsewhere.example/ns/bookshop/sa/catalog")
LATER = NOW + timedelta(days=365)


@pytest.mark.parametrize(
    ("signed", "said"),
    [
        pytest.param(lambda c: c[72:] + b"?", "malformed", id="not protobuf"),
        pytest.param(lambda c: b"", "version 0 with 0 certificates", id="empty"),
        pytest.param(lambda c: resigned(c, IDENTITY.key, version=2), "of version 2", id="a later version"),
        pytest.param(lambda c: resigned(c, IDENTITY.key, chain=[]), "0 certificates", id="no chain"),
        pytest.param(lambda c: resigned(c, IDENTITY.key, chain=[b"?"]), "malformed", id="no certificate"),
        pytest.param(lambda c: resigned(c, OTHER.key), "signature is not by its SVID", id="another's key"),
        pytest.param(
            lambda c: new_start(KEYS.public, OTHER.key, OTHER.chain, NOW).contents[72:],
            f"the start is by {PRINCIPAL}-other; {PRINCIPAL} ships it",
            id="another's start",
        ),
        pytest.param(
            lambda c: new_start(KEYS.public, IDENTITY.key, IDENTITY.chain, LATER).contents[72:],
            "not of this trust domain",
            id="stated when the SVID had ended",
        ),
        pytest.param(
            lambda c: resigned(c, IDENTITY.key, time_ns=2**64 - 1), "not of this trust domain", id="the end of time"
        ),
    ],
)
def test_a_start_that_cannot_be_trusted_is_refused(signed: Any, said: str) -> None:
    with pytest.raises(BadStart, match=said):
        check_start(signed(make()), PRINCIPAL, ROOTS[:1])


def test_a_start_by_an_authority_that_is_not_trusted_is_refused() -> None:
    made = new_start(KEYS.public, FOREIGN.key, FOREIGN.chain, NOW).contents[SECRET_BYTES:]
    owner = str(FOREIGN.spiffe_id)
    assert check_start(made, owner, ROOTS)
    with pytest.raises(BadStart, match="not of this trust domain"):
        check_start(made, owner, [root for root in ROOTS if "elsewhere" not in root.subject.rfc4514_string()])


def test_a_root_that_is_sealed_to_another_does_not_open() -> None:
    statement = check_start(make()[SECRET_BYTES:], PRINCIPAL, ROOTS)
    with pytest.raises(BadStart, match="not sealed to this collector"):
        open_root(statement, X25519PrivateKey.generate())
    for sealed in (b"", b"short", statement.sealed_root[:-1]):
        with pytest.raises(BadStart):
            open_root(dataclasses.replace(statement, sealed_root=sealed), KEYS.sealing)


@given(at=st.integers(0, 5000), change=st.integers(1, 255))
def test_any_change_is_found(at: int, change: int) -> None:
    signed = bytearray(MADE)
    signed[at % len(signed)] ^= change
    with pytest.raises(BadStart):
        check_start(bytes(signed), PRINCIPAL, ROOTS)


MADE = make(heads=[HEAD])[SECRET_BYTES:]


def test_keys_are_made_once_and_are_their_owners_only(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    made = []
    threads = [threading.Thread(target=lambda: made.append(load_or_create_keys(folder).public)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(made)) == 1
    assert load_or_create_keys(folder).public == made[0]
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {
        "sealing.key": 0o600,
        "hash.key": 0o600,
    }
    (folder / "hash.key").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"hash.key has 5 bytes"):
        load_or_create_keys(folder)


def test_keys_have_32_bytes() -> None:
    with pytest.raises(ValueError, match="31 and 32 bytes"):
        AuditKeys(b"x" * 31, b"x" * 32)
