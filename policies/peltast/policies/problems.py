"""What is wrong with a configuration, said so that its author can mend it.

Exceptions::

    Exception
      x InvalidConfiguration        some problems, all that were found
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["InvalidConfiguration", "Problem"]


@dataclass(frozen=True, order=True)
class Problem:
    """One problem: where it is, what was given there, what is allowed.

    `line` counts from 1; 0 means the file as a whole. `field` is a path such as ``spec.rules[0].to``.
    """

    file: str
    line: int
    field: str
    given: str
    allowed: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        field = f" {self.field}:" if self.field else ""
        return f"{place}:{field} {self.given}; {self.allowed}"


class InvalidConfiguration(Exception):
    """A configuration with problems. Nothing of it takes effect."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(map(str, self.problems)))
