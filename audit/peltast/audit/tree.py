"""The Merkle tree over all records (RFC 9162, section 2.1): proofs, and which stored hashes they are made of.

The tree's leaf for a record is the SHA-256 of 0x00 and `spool (16) | sequence (8, big-endian) | link (32) | owner
(UTF-8)`; an inner node that of 0x01 and both hashes below. Hashes are stored in tiles of 256 (C2SP tlog-tiles).
Growing a tree is the engine's (`authz/engine/src/tree.rs`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

__all__ = [
    "HASH_BYTES",
    "TILE",
    "Span",
    "consistency_spans",
    "inclusion_spans",
    "node_hash",
    "perfect_spans",
    "root_of",
    "root_of_consistent",
    "root_of_included",
]

HASH_BYTES = 32
TILE = 256
"""Hashes in a tile."""

Span: TypeAlias = tuple[int, int]
"""The leaves from the first number to before the second."""


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of the node above two."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(roots: Sequence[bytes]) -> bytes:
    """The hash of a tree that is made of perfect trees with these roots, the largest first."""
    if not roots:
        return hashlib.sha256().digest()
    *others, node = roots
    for left in reversed(others):
        node = node_hash(left, node)
    return node


def perfect_spans(span: Span) -> Iterator[Span]:
    """The perfect trees that the tree over `span` is made of, the largest first."""
    start, end = span
    while start < end:
        size = 1 << ((end - start).bit_length() - 1)
        yield start, start + size
        start += size


def inclusion_spans(leaf: int, size: int) -> list[Span]:
    """The spans whose hashes prove that a tree of `size` leaves has `leaf`, from the leaf upwards (section 2.1.3.1).

    Raises:
        ValueError: it has not.
    """
    if not 0 <= leaf < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {leaf}")
    spans, start, end = [], 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        spans.append((middle, end) if leaf < middle else (start, middle))
        start, end = (start, middle) if leaf < middle else (middle, end)
    return spans[::-1]


def consistency_spans(first: int, size: int) -> list[Span]:
    """The spans whose hashes prove that a tree of `size` leaves goes on from one of `first` (section 2.1.4.1).

    Raises:
        ValueError: the first tree is empty, or larger.
    """
    if not 0 < first <= size:
        raise ValueError(f"a tree of {size} leaves cannot go on from one of {first}")
    spans: list[Span] = []
    start, end = 0, size
    while end != first:
        middle = start + _split(end - start)
        spans.append((middle, end) if first <= middle else (start, middle))
        start, end = (start, middle) if first <= middle else (middle, end)
    # Whoever checks has the hash of the whole first tree, and needs that of its last part only where it is one.
    return spans[::-1] if start == 0 else [(start, end), *spans[::-1]]


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def root_of_included(leaf: int, size: int, leaf_hash: bytes, path: Sequence[bytes]) -> bytes:
    """The hash of the tree of `size` leaves in which `leaf` is proved by `path` (section 2.1.3.2).

    Raises:
        ValueError: the path is not one of such a tree.
    """
    spans = inclusion_spans(leaf, size)
    if len(spans) != len(path):
        raise ValueError(f"the path of leaf {leaf} in a tree of {size} has {len(spans)} hashes; {len(path)} are given")
    node = leaf_hash
    for (start, _), other in zip(spans, path, strict=True):
        node = node_hash(other, node) if start < leaf else node_hash(node, other)
    return node


def root_of_consistent(first: int, size: int, first_root: bytes, proof: Sequence[bytes]) -> bytes:
    """The hash of the tree of `size` leaves that `proof` shows to go on from the first (section 2.1.4.2).

    Raises:
        ValueError: it does not show that.
    """
    spans = consistency_spans(first, size)
    if len(spans) != len(proof):
        raise ValueError(f"a proof from {first} to {size} leaves has {len(spans)} hashes; {len(proof)} are given")
    hashes = list(zip(spans, proof, strict=True))
    ends_there = bool(hashes) and hashes[0][0][1] == first
    old = new = hashes.pop(0)[1] if ends_there else first_root
    for (start, _), other in hashes:
        if start < first:
            old, new = node_hash(other, old), node_hash(other, new)
        else:
            new = node_hash(new, other)
    if old != first_root:
        raise ValueError(f"the proof is not one of the tree of {first} leaves")
    return new
