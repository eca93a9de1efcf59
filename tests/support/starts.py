"""Starts for the spools of tests and benchmarks, and a collector that can check them."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from spiffe import SpiffeId

from peltast.audit.collector.collect import Collector
from peltast.audit.collector.keyring import Keyring
from peltast.audit.collector.keys import CollectorKeys
from peltast.audit.protos.collector_pb2 import Batch
from peltast.audit.spool import SpoolReader, spool_folders
from peltast.audit.start import new_start
from peltast.audit.writers import Trust
from peltast.authz._engine import SpoolStart, first_link, next_link, verify_frames
from peltast.identity.ca.authority import Authority, issue, make_intermediate, make_root
from peltast.identity.svid import Svid, new_key_and_csr

PRINCIPAL = "spiffe://mesh.example/ns/bookshop/sa/catalog"

KEYS = CollectorKeys(X25519PrivateKey.generate(), secrets.token_bytes(32))
_AUTHORITIES: dict[str, Authority] = {}
_ROOTS: list[Any] = []


def keyring() -> Keyring:
    """One that remembers nothing: what a collector has after a restart."""
    return Keyring(KEYS, _ROOTS)


def trust() -> Trust:
    """By what all writers of tests are known."""
    return Trust(_ROOTS, KEYS.sealing)


def svid(owner: str) -> Svid:
    """An SVID of `owner`, of an authority that the collector trusts."""
    name = SpiffeId(owner)
    now = datetime.now(UTC)
    if name.trust_domain.name not in _AUTHORITIES:
        authority = make_intermediate(make_root(name.trust_domain, now), name.trust_domain, now)
        _AUTHORITIES[name.trust_domain.name] = authority
        _ROOTS.append(authority.chain[-1])
    key, csr = new_key_and_csr()
    return Svid(key, issue(_AUTHORITIES[name.trust_domain.name], csr, name, now)[:-1])


def start_contents(owner: str = PRINCIPAL) -> bytes:
    """What a process of `owner` is given when it is started."""
    identity = svid(owner)
    return new_start(KEYS.public, identity.key, identity.chain, datetime.now(UTC)).contents


def start(owner: str = PRINCIPAL) -> SpoolStart:
    """A start of `owner`."""
    return SpoolStart(start_contents(owner))


def leave_start(spool: Path, owner: str = PRINCIPAL) -> None:
    """Leaves a start for the next Envoy with spools in the folder `spool`."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    (spool / "start").write_bytes(start_contents(owner))


def spool_of_worker(root: Path, worker: int) -> Path:
    """The folder of the spool that Envoy's `worker` writes."""
    for folder in spool_folders(root):
        [genesis, *_], _, _ = verify_frames(0, first_link(), SpoolReader(folder).read())
        if genesis.fields.get("worker") == worker:
            return folder
    raise LookupError(f"no spool of worker {worker} is in {root}")


def key_of(contents: bytes, index: int, sequence: int) -> bytes:
    """The key of a record of spool number `index`, made as docs/audit.md says."""
    root = contents[8:40]
    for _ in range(index):
        root = _sha256(b"peltast audit root 2\0" + root)
    key = _sha256(b"peltast audit spool 2\0" + root)[:16]
    for _ in range(sequence - 1):
        key = _sha256(b"peltast audit key 2\0" + key)[:16]
    return key


def frame(body: bytes, link_before: bytes, key: bytes) -> bytes:
    """The frame of a record, as whoever has `key` can make it."""
    link = next_link(link_before, body)
    return len(body).to_bytes(4, "little") + body + link + _sha256(key + link)[:16]


def _sha256(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


async def take_in(connection: Any, spool: bytes, owner: str, frames: bytes, **gap: Any) -> int:
    """Has a collector that was just started take in `frames` of `spool`."""
    collector = Collector(keyring(), lambda *_: None)
    return await collector.take_in(connection, owner, Batch(spool=spool, frames=frames, **gap))
