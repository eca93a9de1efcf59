"""The loop of an export: read, send until the receiver has it, advance."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import structlog

from peltast.audit.export.cursor import Cursor
from peltast.audit.export.receiver import Entry, Receiver, Unavailable
from peltast.audit.ocsf import event

__all__ = ["send_all"]

POLL_SECONDS = 0.5
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

log = structlog.get_logger()


async def send_all(cursor: Cursor, receiver: Receiver, version: str, *, once: bool) -> int:
    """Sends everything from the cursor on, for ever; or what there is now. Gives how many records were sent.

    Raises:
        Refused: the receiver does not take a record. The cursor stays before it.
    """
    sent = 0
    while True:
        rows = await cursor.read()
        if not rows and once:
            return sent
        if not rows:
            await asyncio.sleep(POLL_SECONDS)
            continue
        if (gone := rows[0]["leaf"] - cursor.leaf) > 0:
            log.warning("records are gone from the store before they were exported", first=cursor.leaf, number=gone)
        await _deliver(receiver, [Entry(row, event(row, version)) for row in rows])
        await cursor.advance(rows[-1]["leaf"] + 1)
        sent += len(rows)


async def _deliver(receiver: Receiver, entries: Sequence[Entry]) -> None:
    for delay in _delays():
        try:
            await receiver.send(entries)
        except Unavailable as error:
            wait = max(delay, error.retry_after)
            log.warning("receiver unavailable", error=str(error), again_in_seconds=wait)
            await asyncio.sleep(wait)
        else:
            return


def _delays() -> Iterator[float]:
    yield from _RETRY_SECONDS
    while True:
        yield _RETRY_SECONDS[-1]
