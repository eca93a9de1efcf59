"""What records are sent to.

Exceptions:

* :class:`Unavailable`: it does not have them now; the same is to be sent again.
* :class:`Refused`: it will not take them, however often they are sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Entry", "Receiver", "Refused", "Unavailable"]


@dataclass(frozen=True)
class Entry:
    """A record to send: its row, and the event that it becomes."""

    row: Mapping[str, Any]
    event: Mapping[str, Any]


class Unavailable(ConnectionError):
    """The receiver is away, slow or busy. It may say when to come again, in seconds."""

    def __init__(self, what: str, retry_after: float = 0.0) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class Refused(RuntimeError):
    """The receiver does not take what it is sent: going on would lose it."""


class Receiver(Protocol):
    """A receiver of records."""

    async def send(self, entries: Sequence[Entry]) -> None:
        """Returns when the receiver has all of `entries`, in their order.

        Raises:
            Unavailable, Refused: see there. It may have some of them, or all.
        """

    async def close(self) -> None:
        """Lets go of what is open."""
