"""The keys of the spools that a collector takes in: out of what agents stated when they started their writers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from peltast.audit.collector.keys import CollectorKeys
from peltast.audit.start import Statement, check_start, open_root
from peltast.authz._engine import RecordKey

__all__ = ["Keyring"]

MAX_KEPT = 10_000
"""Spools whose keys are at hand. Those of others are made again from their first one."""
MAX_START_INDEX = 1_000_000
"""Spools of one start: far more than there are threads."""


@dataclass
class Keyring:
    """Checks starts and gives keys. It forgets nothing that it could not make again."""

    keys: CollectorKeys
    roots: Sequence[x509.Certificate]
    """The trust bundle."""

    def __post_init__(self) -> None:
        self._kept: OrderedDict[bytes, RecordKey] = OrderedDict()

    def check(self, signed: bytes, owner: str) -> Statement:
        """What `signed` states about a start of `owner`.

        Raises:
            BadStart: see there; or its root key cannot be opened.
        """
        statement = check_start(signed, owner, self.roots)
        open_root(statement, self.keys.sealing)
        return statement

    def take(self, spool: bytes, sequence: int, signed: bytes, index: int, owner: str) -> RecordKey:
        """The key of the record after `sequence` of `spool`, which is number `index` of a start.

        Whoever takes it brings it back with :meth:`keep`, when what it authenticated is committed.

        Raises:
            BadStart: see :meth:`check`.
            ValueError: the index is out of bounds.
        """
        kept = self._kept.pop(spool, None)
        if kept is None or kept.sequence > sequence:
            if not 0 <= index <= MAX_START_INDEX:
                raise ValueError(f"the spool is number {index} of its start; at most {MAX_START_INDEX} are expected")
            kept = RecordKey(open_root(check_start(signed, owner, self.roots), self.keys.sealing), index)
        kept.pass_over(sequence)
        return kept

    def keep(self, spool: bytes, key: RecordKey) -> None:
        """Notes a key for the next batch of `spool`."""
        self._kept[spool] = key
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
