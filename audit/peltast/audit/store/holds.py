"""Legal holds: days that are kept although their time is over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import asyncpg

__all__ = ["Hold", "InvalidHold", "add_hold", "holds", "remove_hold"]

_MAX_NAME, _MAX_REASON = 200, 4000


class InvalidHold(ValueError):
    """A hold that cannot be, or is not there."""


@dataclass(frozen=True)
class Hold:
    """A hold on the days (UTC) from `since` to `until`, both included."""

    name: str
    since: date
    until: date
    reason: str

    def __post_init__(self) -> None:
        """Raises InvalidHold."""
        if self.until < self.since:
            raise InvalidHold(f"it ends on {self.until}, before it begins on {self.since}")
        for what, text, longest in (("name", self.name, _MAX_NAME), ("reason", self.reason, _MAX_REASON)):
            if not 0 < len(text.strip()) <= longest or "\0" in text:
                raise InvalidHold(f"{what}: {len(text)} characters; 1 to {longest} are expected")


async def add_hold(connection: asyncpg.Connection[Any], hold: Hold) -> None:
    """Puts `hold` in force. From then on no day of it is dropped.

    Raises:
        InvalidHold: there is one of that name.
    """
    try:
        await connection.execute(
            "INSERT INTO legal_holds (name, since, until, reason) VALUES ($1, $2, $3, $4)",
            *(hold.name, hold.since, hold.until, hold.reason),
        )
    except asyncpg.UniqueViolationError:
        raise InvalidHold(f"there is a hold {hold.name!r} already; give another name, or remove it first") from None


async def holds(connection: asyncpg.Connection[Any]) -> list[Hold]:
    """Every hold in force."""
    rows = await connection.fetch("SELECT name, since, until, reason FROM legal_holds ORDER BY name")
    return [Hold(row["name"], row["since"], row["until"], row["reason"]) for row in rows]


async def remove_hold(connection: asyncpg.Connection[Any], name: str) -> None:
    """Ends the hold `name`.

    Raises:
        InvalidHold: there is none of that name.
    """
    if await connection.execute("DELETE FROM legal_holds WHERE name = $1", name) == "DELETE 0":
        raise InvalidHold(f"there is no hold {name!r}")
