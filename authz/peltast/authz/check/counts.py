"""What a process of the check service counts between two times that it tells the control plane.

Told over the pipe to the control plane, which adds up all processes: so a scrape sees one check service, also after one
of its processes has died. Counting costs a question less than a microsecond.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BOUNDS_SECONDS", "Counts", "Refusal"]

BOUNDS_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Upper bounds of the classes that durations fall into; one more is for all that took longer."""

MOST_REFUSALS = 32
"""Different refusals that are told each time; those beyond are one, of nobody in particular."""

_MAX_WHY = 200

_OTHERS = ("", "more refusals")

Refusal = tuple[str, str]
"""Who asked (a SPIFFE ID; empty where nobody can tell), and why there is no decision."""


@dataclass
class Counts:
    """Everything since it was made."""

    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By effect and by where it was made: ``engine``, ``cache``, ``failed-open``."""
    durations: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_SECONDS) + 1))
    """How many fell into each class."""
    seconds: float = 0.0
    """All durations together."""
    unanswered: Counter[str] = field(default_factory=Counter)
    """By why no evaluator answered."""
    refused: Counter[Refusal] = field(default_factory=Counter)
    evaluators_ended: int = 0
    waiting: int = 0
    """Questions that wait for an evaluator now."""

    def decided(self, effect: str, source: str, seconds: float) -> None:
        """Counts an answer."""
        self.decisions[effect, source] += 1
        self.durations[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.seconds += seconds

    def refuse(self, caller: str, why: str) -> None:
        """Counts a question that is none, or not the caller's to ask."""
        refusal = (caller, why[:_MAX_WHY])
        known = refusal in self.refused or len(self.refused) < MOST_REFUSALS
        self.refused[refusal if known else _OTHERS] += 1

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.decisions + other.decisions,
            [one + another for one, another in zip(self.durations, other.durations, strict=True)],
            self.seconds + other.seconds,
            self.unanswered + other.unanswered,
            self.refused + other.refused,
            self.evaluators_ended + other.evaluators_ended,
            self.waiting + other.waiting,
        )

    def dump(self) -> bytes:
        """All of it, for :meth:`load`."""
        fields: dict[str, Any] = {**vars(self)}
        for name in ("decisions", "refused"):
            fields[name] = [[*key, number] for key, number in fields[name].items()]
        return json.dumps(fields).encode()

    @classmethod
    def load(cls, dumped: bytes) -> Counts:
        """What :meth:`dump` made."""
        fields = json.loads(dumped)
        for name in ("decisions", "refused"):
            fields[name] = Counter({(one, other): number for one, other, number in fields[name]})
        return cls(**{**fields, "unanswered": Counter(fields["unanswered"])})
