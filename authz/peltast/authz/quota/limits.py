"""Which limit a descriptor has: the configuration of envoyproxy/ratelimit as typed values, and its matching.

Source: https://github.com/envoyproxy/ratelimit, README, "Configuration" and "Descriptor list definition".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Domain", "Entry", "Limit", "Node", "Unit", "entry_key", "find"]


class Unit(Enum):
    """How long a window is, in seconds. A month has 30 days, a year 365."""

    SECOND = 1
    MINUTE = 60
    HOUR = 3_600
    DAY = 86_400
    WEEK = 7 * 86_400
    MONTH = 30 * 86_400
    YEAR = 365 * 86_400


@dataclass(frozen=True)
class Limit:
    """`requests_per_unit` in each `unit`; without a unit, unlimited."""

    requests_per_unit: int
    unit: Unit | None
    name: str = ""
    replaces: frozenset[str] = frozenset()
    shadow_mode: bool = False
    """Whether it is counted and answered as if it were not exceeded."""


@dataclass(frozen=True)
class Node:
    """What is said of one entry, and of those that follow it, by their :func:`entry_key`."""

    limit: Limit | None = None
    nodes: Mapping[str, Node] = field(default_factory=dict)

    def next(self, entry: Entry) -> Node | None:
        """What is said of `entry`: of its value, of values that begin like it (``VALUE*``), or of any."""
        key, value = entry
        exact = entry_key(key, value) if value else f"{key}_"
        if (found := self.nodes.get(exact)) is not None:
            return found
        for wildcard in self._wildcards:
            if exact.startswith(wildcard[:-1]):
                return self.nodes[wildcard]
        return self.nodes.get(key)

    @property
    def _wildcards(self) -> list[str]:
        return [key for key in self.nodes if key.endswith("*")]


Domain = Node
"""The root of a domain's descriptors."""

Entry = tuple[str, str]
"""A key and its value."""


def entry_key(key: str, value: str) -> str:
    """How a descriptor is looked up. The original joins key and value so, and this decides which ones are the same."""
    return f"{key}_{value}" if value else key


def find(domain: Domain, entries: Sequence[Entry]) -> Limit | None:
    """The limit of exactly `entries`, if there is one."""
    node: Node | None = domain
    for entry in entries:
        node = node.next(entry) if node is not None else None
    return node.limit if node is not None else None
