"""A question to the store, as a value."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from peltast.audit.query.shape import SHAPES, Kind, Shape

__all__ = ["Code", "Cursor", "Decision", "Order", "Query", "Text"]


class Decision(StrEnum):
    """What was decided."""

    ALLOW = "allow"
    DENY = "deny"


class Order(StrEnum):
    """Which rows come first."""

    NEWEST = "newest"
    OLDEST = "oldest"


@dataclass(frozen=True)
class Text:
    """A text to be found: the whole of it, or what begins with it."""

    value: str
    prefix: bool = False


@dataclass(frozen=True)
class Code:
    """HTTP status codes, first and last."""

    first: int
    last: int


@dataclass(frozen=True)
class Cursor:
    """A row by its place in the order of time: what a page ended with."""

    time_us: int
    leaf: int

    def __str__(self) -> str:
        return f"{self.time_us}-{self.leaf}"


@dataclass(frozen=True)
class Query:
    """What is asked for. Times are nanoseconds since 1970; `until` is not in the range.

    `equal` are filters by name, of those that the kind's :class:`~peltast.audit.query.shape.Shape` has. `columns` are
    those of rows, or (`counted`) those by which rows are counted. Without a `limit`, all.
    """

    kind: Kind = Kind.REQUESTS
    since: int | None = None
    until: int | None = None
    equal: dict[str, str | bool] = field(default_factory=dict)
    path: Text | None = None
    code: Code | None = None
    columns: tuple[str, ...] = ()
    counted: bool = False
    order: Order = Order.NEWEST
    limit: int | None = 100
    after: Cursor | None = None

    @property
    def shape(self) -> Shape:
        """What its kind can be asked."""
        return SHAPES[self.kind]
