"""Inclusion proofs: that a record is in the tree that a checkpoint signs, to be checked without the store."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg

from peltast.audit.checkpoint import Checkpoint, VerifierKey, open_checkpoint
from peltast.audit.tree import HASH_BYTES, TILE, Span, inclusion_spans, perfect_spans, root_of, root_of_included
from peltast.authz._engine import Record, first_link, grow_tree, leaf_hash, next_link, read_record

__all__ = ["MAX_PROOF", "BadProof", "NotProvable", "Proof", "prove"]

MAX_PROOF = 8 * 1024 * 1024
"""Longest proof that is read, in bytes: far above the longest record."""

_VERSION = 1

Connection: TypeAlias = "asyncpg.Connection[Any]"


class NotProvable(LookupError):
    """There is no such record, or no checkpoint covers it yet."""


class BadProof(ValueError):
    """It proves nothing."""


@dataclass(frozen=True)
class Proof:
    """A record, the way from it to the root of a tree, and who signed that."""

    spool: bytes
    sequence: int
    owner: str
    link_before: bytes
    body: bytes
    leaf: int
    path: Sequence[bytes]
    checkpoint: str

    def check(self, key: VerifierKey) -> tuple[Record, Checkpoint]:
        """The record that is proved, and the checkpoint that it is in.

        Raises:
            BadProof: it is not proved.
        """
        try:
            checkpoint = open_checkpoint(self.checkpoint, key)
            link = next_link(self.link_before, self.body)
            record = read_record(self.body, link)
            hashed = leaf_hash(self.spool, self.sequence, link, self.owner)
            root = root_of_included(self.leaf, checkpoint.size, hashed, self.path)
        except (ValueError, OverflowError) as error:
            raise BadProof(str(error)) from error
        if record.sequence != self.sequence:
            raise BadProof(f"the record has the sequence {record.sequence}; {self.sequence} is said")
        if root != checkpoint.root:
            raise BadProof("the record is not in the tree that the checkpoint signs")
        return record, checkpoint

    def to_json(self) -> dict[str, Any]:
        """The proof for a file: hashes in hexadecimal, the body in Base64."""
        return {
            "version": _VERSION,
            "spool": self.spool.hex(),
            "sequence": self.sequence,
            "owner": self.owner,
            "link_before": self.link_before.hex(),
            "body": base64.b64encode(self.body).decode(),
            "leaf": self.leaf,
            "path": [each.hex() for each in self.path],
            "checkpoint": self.checkpoint,
        }

    @classmethod
    def from_json(cls, text: bytes) -> Proof:
        """Reads what :meth:`to_json` wrote.

        Raises:
            BadProof: it is something else.
        """
        try:
            said = json.loads(text[: MAX_PROOF + 1])
            if said["version"] != _VERSION:
                raise BadProof(f"version {said['version']} of proofs is not known; {_VERSION} is")
            return cls(
                spool=bytes.fromhex(said["spool"]),
                sequence=_number(said["sequence"]),
                owner=str(said["owner"]),
                link_before=_hash(said["link_before"]),
                body=base64.b64decode(said["body"], validate=True),
                leaf=_number(said["leaf"]),
                path=[_hash(each) for each in said["path"]],
                checkpoint=str(said["checkpoint"]),
            )
        except (TypeError, KeyError, ValueError, RecursionError, binascii.Error) as error:
            raise BadProof(f"this is not a proof: {type(error).__name__}: {error}") from error


def _hash(text: str) -> bytes:
    found = bytes.fromhex(text)
    if len(found) != HASH_BYTES:
        raise ValueError(f"a hash has {len(found)} bytes; {HASH_BYTES} are expected")
    return found


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no number of a record")
    return value


async def prove(connection: Connection, *, spool: bytes, sequence: int) -> Proof:
    """The proof for a record, in the tree of the newest checkpoint.

    Raises:
        NotProvable: see there.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        record = await connection.fetchrow(
            "SELECT sequence, leaf, owner, body, link FROM records WHERE spool = $1 AND sequence = $2", spool, sequence
        )
        if record is None:
            raise NotProvable(f"there is no record {spool.hex()}:{sequence}")
        signed = await connection.fetchrow("SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1")
        if signed is None or signed["size"] <= record["leaf"]:
            raise NotProvable("no checkpoint covers the record yet: one is signed every minute")
        before = await _link_before(connection, spool, sequence)
        spans = inclusion_spans(record["leaf"], signed["size"])
        path = [await _span_hash(connection, span) for span in spans]
    return Proof(spool, sequence, record["owner"], before, record["body"], record["leaf"], path, signed["note"])


async def _link_before(connection: Connection, spool: bytes, sequence: int) -> bytes:
    link: bytes | None = await connection.fetchval(
        "SELECT link FROM records WHERE spool = $1 AND sequence = $2 - 1 "
        "UNION ALL SELECT link FROM gaps WHERE spool = $1 AND until = $2 - 1 AND link IS NOT NULL "
        "UNION ALL SELECT link FROM dropped_records WHERE spool = $1 AND until = $2 - 1",
        spool,
        sequence,
    )
    return first_link() if link is None else link


async def _span_hash(connection: Connection, span: Span) -> bytes:
    return root_of([await _perfect_hash(connection, each) for each in perfect_spans(span)])


async def _perfect_hash(connection: Connection, span: Span) -> bytes:
    """The root of a perfect tree over `span`, from the smallest tile that has it, or else from its halves."""
    start, end = span
    level, unit = 0, 1
    while end - start > unit * TILE:
        level, unit = level + 1, unit * TILE
    first, count = start // unit, (end - start) // unit
    hashes = await _hashes(connection, level, first // TILE)
    within = first % TILE
    if len(hashes) >= (within + count) * HASH_BYTES:
        return grow_tree(0, b"", hashes[within * HASH_BYTES : (within + count) * HASH_BYTES])
    middle = (start + end) // 2
    return root_of([await _perfect_hash(connection, half) for half in ((start, middle), (middle, end))])


async def _hashes(connection: Connection, level: int, number: int) -> bytes:
    """The hashes of a tile, as many as are stored."""
    query = "SELECT hashes FROM tiles WHERE level = $1 AND number = $2"
    tile: bytes | None = await connection.fetchval(query, level, number)
    if tile is None and level == 0:
        tile = await connection.fetchval("SELECT tail FROM tree WHERE size / $1 = $2", TILE, number)
    return tile or b""
