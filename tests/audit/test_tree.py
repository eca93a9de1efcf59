from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.audit.tree import (
    HASH_BYTES,
    consistency_spans,
    inclusion_spans,
    perfect_spans,
    root_of,
    root_of_consistent,
    root_of_included,
)
from peltast.authz._engine import grow_tree, leaf_hash, tree_root

EMPTY = hashlib.sha256().digest()


def tree_hash(entries: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word for word."""
    if not entries:
        return EMPTY
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    k = 1
    while 2 * k < len(entries):
        k *= 2
    return hashlib.sha256(b"\1" + tree_hash(entries[:k]) + tree_hash(entries[k:])).digest()


def hashes(entries: Sequence[bytes]) -> list[bytes]:
    return [hashlib.sha256(b"\0" + entry).digest() for entry in entries]


def entries_of(size: int) -> list[bytes]:
    return [b"%d" % index for index in range(size)]


LISTS = st.lists(st.binary(max_size=8), max_size=80)
SIZES = st.integers(1, 300)


@given(LISTS, st.data())
def test_a_tree_that_grew_in_any_batches_is_the_tree_of_its_leaves(entries: list[bytes], data: st.DataObject) -> None:
    middle = data.draw(st.integers(0, len(entries)))
    leaves = hashes(entries)
    frontier = grow_tree(0, b"", b"".join(leaves[:middle]))
    assert tree_root(middle, frontier) == tree_hash(entries[:middle])
    frontier = grow_tree(middle, frontier, b"".join(leaves[middle:]))
    assert tree_root(len(entries), frontier) == tree_hash(entries)
    roots = [tree_hash(entries[start:end]) for start, end in perfect_spans((0, len(entries)))]
    assert frontier == b"".join(roots)
    assert root_of(roots) == tree_hash(entries)


@given(SIZES, st.data())
def test_a_leaf_is_proved(size: int, data: st.DataObject) -> None:
    leaf = data.draw(st.integers(0, size - 1))
    entries = entries_of(size)
    path = [tree_hash(entries[start:end]) for start, end in inclusion_spans(leaf, size)]
    assert root_of_included(leaf, size, hashes(entries)[leaf], path) == tree_hash(entries)


@given(SIZES, st.data())
def test_a_proof_shows_no_other_leaf_at_no_other_place(size: int, data: st.DataObject) -> None:
    leaf, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    entries = entries_of(size)
    path = [tree_hash(entries[start:end]) for start, end in inclusion_spans(leaf, size)]
    if other != leaf:
        assert root_of_included(leaf, size, hashes(entries)[other], path) != tree_hash(entries)
    if other != leaf and len(inclusion_spans(other, size)) == len(path):
        assert root_of_included(other, size, hashes(entries)[leaf], path) != tree_hash(entries)


@given(SIZES, st.data())
def test_a_larger_tree_is_shown_to_go_on_from_a_smaller_one(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size))
    entries = entries_of(size)
    proof = [tree_hash(entries[start:end]) for start, end in consistency_spans(first, size)]
    assert root_of_consistent(first, size, tree_hash(entries[:first]), proof) == tree_hash(entries)


@given(SIZES, st.data())
def test_a_tree_with_another_past_is_not_shown_to_go_on(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, first - 1))
    entries = entries_of(size)
    before = [*entries[:changed], b"another", *entries[changed + 1 : first]]
    proof = [tree_hash(entries[start:end]) for start, end in consistency_spans(first, size)]
    try:
        root = root_of_consistent(first, size, tree_hash(before), proof)
    except ValueError:
        return
    assert root != tree_hash(entries)


@pytest.mark.parametrize(("leaf", "size"), [(0, 0), (1, 1), (-1, 4), (4, 4)])
def test_a_leaf_that_a_tree_lacks_has_no_proof(leaf: int, size: int) -> None:
    with pytest.raises(ValueError, match="has no leaf"):
        inclusion_spans(leaf, size)


@pytest.mark.parametrize(("first", "size"), [(0, 3), (4, 3)])
def test_a_tree_that_cannot_go_on_from_another_has_no_proof(first: int, size: int) -> None:
    with pytest.raises(ValueError, match="cannot go on"):
        consistency_spans(first, size)


def test_a_path_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has 2 hashes; 1 are given"):
        root_of_included(0, 4, EMPTY, [EMPTY])
    with pytest.raises(ValueError, match="has 3 hashes; 0 are given"):
        root_of_consistent(3, 4, EMPTY, [])


def test_a_leaf_is_the_hash_of_place_link_and_owner() -> None:
    spool, link, owner = b"s" * 16, b"l" * 32, "spiffe://mesh.example/ns/a/sa/b"
    whole = b"\0" + spool + (7).to_bytes(8, "big") + link + owner.encode()
    assert leaf_hash(spool, 7, link, owner) == hashlib.sha256(whole).digest()


@pytest.mark.parametrize(("size", "frontier"), [(0, b"x" * HASH_BYTES), (1, b""), (3, b"x" * 63)])
def test_a_frontier_of_another_size_is_refused(size: int, frontier: bytes) -> None:
    with pytest.raises(ValueError, match=f"a tree of {size} leaves"):
        grow_tree(size, frontier, b"")
    with pytest.raises(ValueError, match=f"a tree of {size} leaves"):
        tree_root(size, frontier)
