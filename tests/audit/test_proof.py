from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from support.starts import take_in

from peltast.audit.checkpoint import Signer
from peltast.audit.collector.checkpoints import sign_tree
from peltast.audit.collector.leaves import append_leaves
from peltast.audit.proof import BadProof, NotProvable, Proof, _span_hash, prove
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import COLLECTOR_ROLE
from peltast.audit.tree import TILE, inclusion_spans, root_of_included
from peltast.authz._engine import tree_root

Connection = asyncpg.Connection

SIGNER = Signer("peltast.dev/audit/mesh.example", Ed25519PrivateKey.from_private_bytes(b"k" * 32))
OTHER = Signer("peltast.dev/audit/mesh.example", Ed25519PrivateKey.from_private_bytes(b"x" * 32))
KEY = SIGNER.verifier_key


@pytest.fixture
async def pool(postgres: EmbeddedPostgres, owner: Connection) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(postgres.url(COLLECTOR_ROLE), min_size=0, max_size=1) as pool:
        yield pool


@pytest.fixture
async def spool(spool: Any, pool: asyncpg.Pool, principal: str) -> Any:
    """A spool of 300 records, the last of which is not signed yet."""
    for index in range(298):
        spool.append(path=f"/{index}")
    async with pool.acquire() as connection:
        await take_in(connection, spool.id, principal, spool.frames())
    await sign_tree(pool, SIGNER)
    spool.append(path="/last")
    async with pool.acquire() as connection:
        await take_in(connection, spool.id, principal, spool.frames())
    return spool


@pytest.mark.parametrize("sequence", [1, 2, 256, 257, 299])
async def test_a_record_is_proved_and_the_proof_is_checked_alone(
    auditor: Connection, spool: Any, principal: str, sequence: int
) -> None:
    proof = await prove(auditor, spool=spool.id, sequence=sequence)
    read = Proof.from_json(json.dumps(proof.to_json()).encode())
    assert read == proof
    record, checkpoint = read.check(KEY)
    assert (record.sequence, checkpoint.size, proof.leaf, proof.owner) == (sequence, 299, sequence - 1, principal)
    if sequence > 1:
        assert record.fields == {"path": b"/%d" % (sequence - 2)}


async def test_what_is_not_there_or_not_signed_is_not_proved(auditor: Connection, spool: Any) -> None:
    with pytest.raises(NotProvable, match="there is no record"):
        await prove(auditor, spool=spool.id, sequence=301)
    with pytest.raises(NotProvable, match="no checkpoint covers"):
        await prove(auditor, spool=spool.id, sequence=300)


CHANGES: list[tuple[str, Callable[[Proof], dict[str, Any]], str]] = [
    ("another body", lambda proof: {"body": proof.body.replace(b"/5", b"/6")}, "not in the tree"),
    ("another spool", lambda _: {"spool": bytes(16)}, "not in the tree"),
    ("another owner", lambda _: {"owner": "spiffe://forged/"}, "not in the tree"),
    ("another sequence", lambda _: {"sequence": 8}, "has the sequence 7; 8 is said"),
    ("another leaf", lambda proof: {"leaf": proof.leaf ^ 1}, "not in the tree"),
    ("a leaf beyond", lambda _: {"leaf": 299}, "has no leaf 299"),
    ("another link before", lambda _: {"link_before": bytes(32)}, "not in the tree"),
    ("a path too short", lambda proof: {"path": proof.path[:-1]}, "has 9 hashes; 8 are given"),
    ("another path", lambda proof: {"path": [bytes(32), *proof.path[1:]]}, "not in the tree"),
    ("a body cut short", lambda _: {"body": b"short"}, "cut short"),
    ("another key's checkpoint", lambda _: {"checkpoint": OTHER.sign(299, bytes(32))}, "no signature of it"),
    ("another tree", lambda _: {"checkpoint": SIGNER.sign(299, bytes(32))}, "not in the tree"),
]


@pytest.mark.parametrize(("change", "problem"), [pytest.param(*rest, id=name) for name, *rest in CHANGES])
async def test_a_proof_with_anything_changed_proves_nothing(
    auditor: Connection, spool: Any, change: Callable[[Proof], dict[str, Any]], problem: str
) -> None:
    proof = await prove(auditor, spool=spool.id, sequence=7)
    with pytest.raises(BadProof, match=problem):
        dataclasses.replace(proof, **change(proof)).check(KEY)


@given(st.one_of(st.binary(max_size=60), st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps)))
def test_what_is_no_proof_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadProof):
        Proof.from_json(text if isinstance(text, bytes) else text.encode())


MEMBERS = {
    "version": 2,
    "spool": "x",
    "sequence": 2**63,
    "link_before": "00",
    "body": "*",
    "leaf": -1,
    "path": ["00"],
}


@pytest.mark.parametrize(("member", "value"), MEMBERS.items())
async def test_a_proof_with_a_bad_member_is_refused(
    auditor: Connection, spool: Any, member: str, value: object
) -> None:
    said = (await prove(auditor, spool=spool.id, sequence=1)).to_json()
    with pytest.raises(BadProof):
        Proof.from_json(json.dumps({**said, member: value}).encode())
    with pytest.raises(BadProof):
        Proof.from_json(json.dumps({name: each for name, each in said.items() if name != member}).encode())


async def test_paths_over_tiles_of_higher_levels_lead_to_the_root(owner: Connection) -> None:
    size = TILE * TILE + TILE * 3 + 5
    leaves = [hashlib.sha256(b"%d" % index).digest() for index in range(size)]
    await append_leaves(owner, b"".join(leaves))
    frontier = await owner.fetchval("SELECT frontier FROM tree")
    for leaf in (0, 255, 256, TILE * TILE - 1, TILE * TILE, size - 6, size - 5, size - 1):
        path = [await _span_hash(owner, span) for span in inclusion_spans(leaf, size)]
        assert root_of_included(leaf, size, leaves[leaf], path) == tree_root(size, frontier), leaf
