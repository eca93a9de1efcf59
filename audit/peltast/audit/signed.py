"""Checkpoints as evidence: those of the store, those that were published, and what they say of each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg

from peltast.audit.checkpoint import BadCheckpoint, Checkpoint, VerifierKey, open_checkpoint
from peltast.audit.findings import Findings
from peltast.audit.sinks import Source

__all__ = ["Evidence", "Notes", "published_notes", "store_evidence"]

Notes: TypeAlias = Mapping[str, Mapping[str, str]]
"""Notes by their names, by the places where they were published."""

_PUBLISHED_WITHIN = timedelta(minutes=2)


@dataclass(frozen=True, order=True)
class Evidence:
    """That a tree of `size` leaves had the hash `root`, and where that is said."""

    size: int
    root: bytes
    place: str


async def published_notes(sources: Mapping[str, Source]) -> Notes:
    """What is at each place. To be read before the store: what is signed meanwhile is then in the store alone.

    Raises:
        SinkFailed: a place cannot be read.
    """
    return {place: await source.notes() for place, source in sources.items()}


async def store_evidence(
    connection: asyncpg.Connection[Any], key: VerifierKey | None, published: Notes, findings: Findings
) -> list[Evidence]:
    """Everything that was signed, the smallest tree first; of the store without `key` everything that it says.

    A checkpoint that is forged, was taken out of one place, or is another one elsewhere becomes a finding.
    """
    rows = await connection.fetch("SELECT size, root, time, note FROM checkpoints ORDER BY size")
    if key is None:
        return [Evidence(row["size"], row["root"], "the store") for row in rows]
    stored = list(_opened({f"of size {row['size']}": row["note"] for row in rows}, "the store", key, findings))
    signed = {(evidence.size, evidence.root) for evidence in stored}
    for row in rows:
        if (row["size"], row["root"]) not in signed:
            findings.add(f"the store's checkpoint of size {row['size']} has another size or hash than its note")
    late = datetime.now(UTC) - _PUBLISHED_WITHIN
    due = {row["note"]: row["size"] for row in rows if row["time"] < late}
    everything = [*stored]
    for place, notes in published.items():
        opened = list(_opened(notes, place, key, findings))
        _compare(place, opened, stored, findings)
        for note, size in due.items():
            if note not in notes.values():
                findings.add(f"{place} has not the checkpoint of size {size}, which the store has")
        everything += opened
    return sorted(everything)


def _opened(notes: Mapping[str, str], place: str, key: VerifierKey, findings: Findings) -> Iterable[Evidence]:
    for name, note in notes.items():
        try:
            checkpoint: Checkpoint = open_checkpoint(note, key)
        except BadCheckpoint as error:
            findings.add(f"{place}: the checkpoint {name} is forged: {error}")
        else:
            yield Evidence(checkpoint.size, checkpoint.root, place)


def _compare(place: str, opened: Iterable[Evidence], stored: Iterable[Evidence], findings: Findings) -> None:
    known = {evidence.size: evidence.root for evidence in stored}
    for evidence in opened:
        if evidence.size not in known:
            findings.add(f"the store has not the checkpoint of size {evidence.size}, which {place} has")
        elif known[evidence.size] != evidence.root:
            findings.add(f"two trees of size {evidence.size} were signed: the store's, and that of {place}")
