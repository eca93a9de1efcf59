"""What verifying finds."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["MAX_FINDINGS", "Finding", "Findings"]

MAX_FINDINGS = 1000
"""So many are told; of more only the number."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written: what, and of which record, as far as that is known."""

    what: str
    spool: str | None = None
    sequence: int | None = None
    leaf: int | None = None

    def __str__(self) -> str:
        record = f"record {self.spool}:{self.sequence}: " if self.spool else ""
        return record + self.what


@dataclass
class Findings:
    """Findings as they are made."""

    told: list[Finding] = field(default_factory=list)
    count: int = 0

    def add(self, what: str, spool: bytes | None = None, sequence: int | None = None, leaf: int | None = None) -> None:
        """Tells of one more."""
        self.count += 1
        if len(self.told) < MAX_FINDINGS:
            self.told.append(Finding(what, spool.hex() if spool is not None else None, sequence, leaf))
