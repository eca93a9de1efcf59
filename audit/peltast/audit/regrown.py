"""The tree grown again, out of what the records say: against what was signed, and what is stored of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from peltast.audit.findings import Findings
from peltast.audit.signed import Evidence
from peltast.audit.tree import HASH_BYTES, TILE
from peltast.authz._engine import grow_tree, tree_root

__all__ = ["TILE_BYTES", "Regrown", "tile_roots"]

TILE_BYTES = TILE * HASH_BYTES


def tile_roots(hashes: bytes) -> bytes:
    """The roots of the whole tiles that `hashes` are made of."""
    whole = range(0, len(hashes) - len(hashes) % TILE_BYTES, TILE_BYTES)
    return b"".join(grow_tree(0, b"", hashes[start : start + TILE_BYTES]) for start in whole)


class Regrown:
    """A tree that grows as it did, and is compared with each checkpoint at its size."""

    def __init__(self, evidence: Sequence[Evidence], findings: Findings) -> None:
        self.size = 0
        self.frontier = b""
        self.tail = b""
        self.roots = bytearray()
        """Of the whole tiles of level 0."""
        self._evidence = deque(evidence)
        self._findings = findings
        self._held = 0
        self._failed = False

    def grow(self, leaves: bytes) -> None:
        """Appends leaves."""
        end = self.size + len(leaves) // HASH_BYTES
        while self._evidence and self._evidence[0].size <= end:
            cut = (self._evidence[0].size - self.size) * HASH_BYTES
            self._append(leaves[:cut])
            self._compare(self._evidence.popleft())
            leaves = leaves[cut:]
        self._append(leaves)

    def _append(self, leaves: bytes) -> None:
        self.frontier = grow_tree(self.size, self.frontier, leaves)
        self.size += len(leaves) // HASH_BYTES
        hashes = self.tail + leaves
        roots = tile_roots(hashes)
        self.roots += roots
        self.tail = hashes[len(roots) * TILE :]

    def _compare(self, evidence: Evidence) -> None:
        if tree_root(self.size, self.frontier) == evidence.root:
            self._held = self.size
        elif not self._failed:
            self._failed = True  # every later one fails as well
            self._findings.add(
                f"the records are not those that were signed: the checkpoint of size {evidence.size} "
                f"({evidence.place}) does not hold, and the first record that may be another one has leaf {self._held}",
                leaf=self._held,
            )

    def end(self) -> None:
        """Tells of checkpoints that are of a larger tree."""
        if self._evidence:
            last = self._evidence[-1]
            self._findings.add(
                f"the newest records are missing: there are {self.size}, and the checkpoint of size {last.size} "
                f"({last.place}) vouches for more"
            )
