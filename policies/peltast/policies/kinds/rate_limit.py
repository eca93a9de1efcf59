"""RateLimitPolicy: how many requests of a kind a workload takes in a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from peltast.policies.kinds.authorization import (
    CONDITION_KEYS,
    Rule,
    is_condition_key,
    rule_problems,
    template_problems,
)
from peltast.policies.kinds.rego import OnError
from peltast.policies.kinds.resource import Model
from peltast.policies.kinds.selection import TargetedSpec
from peltast.policies.sources.documents import FieldPath

__all__ = ["PATH_TEMPLATE", "Limit", "Rate", "RateLimitPolicySpec", "Scope"]

Finding = tuple[FieldPath, str, str]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
WindowText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}(ms|s|m|h|d)$")]

PATH_TEMPLATE = "request.pathTemplate"
"""In ``by``: the first of the limit's ``pathTemplates`` that the path matches."""

_MORE_KEYS = ("request.method", "request.host", "request.path", PATH_TEMPLATE)
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_LONGEST = timedelta(days=90)
"""The longest time that an empty bucket takes to fill, as in the quota service."""
_MAX_LIMITS, _MAX_KEYS, _MAX_RATES = 32, 16, 8
_EMPTY = ("an empty list is given", "leave it out where it does not restrict")


class Scope(StrEnum):
    """Where requests are counted."""

    LOCAL = "local"
    """In each sidecar."""
    GLOBAL = "global"
    """In one place for all sidecars."""


class Rate(Model):
    """`requests` come back evenly over `per`, and at most `burst` are let through at once."""

    requests: Count
    per: WindowText
    burst: Count | None = None

    @property
    def period(self) -> timedelta:
        """What `per` says."""
        number, unit = re.split(r"(?<=[0-9])(?=[a-z])", self.per)
        return int(number) * _UNITS[unit]

    @property
    def at_once(self) -> int:
        """`burst`, or all of the requests."""
        return self.requests if self.burst is None else self.burst

    def problems(self) -> Iterator[Finding]:
        """See :meth:`Spec.problems`."""
        nanoseconds = self.period // timedelta(microseconds=1) * 1000
        full = timedelta(microseconds=self.at_once * -(-nanoseconds // self.requests) // 1000)
        if self.requests > nanoseconds:
            yield (("requests",), f"{self.requests} are given per {self.per}", "at most one in a nanosecond")
        if full > _LONGEST:
            allowed = f"a bucket that fills within {_LONGEST.days} days is expected"
            yield (("burst",), f"{self.at_once} at {self.requests} per {self.per} take {full.days} days", allowed)


class Limit(Model):
    """Counts the requests that match one of its rules, apart for each value of what it counts them by."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.]{0,62}$")
    rules: list[Rule] = []
    by: list[str] = []
    path_templates: list[str] = []
    rates: list[Rate]

    def problems(self) -> Iterator[Finding]:
        """See :meth:`Spec.problems`."""
        for name, given in (("rules", self.rules), ("by", self.by), ("pathTemplates", self.path_templates)):
            if given == [] and {"pathTemplates": "path_templates"}.get(name, name) in self.model_fields_set:
                yield ((name,), *_EMPTY)
        yield from rule_problems(self.rules, ("rules",))
        yield from self._key_problems()
        yield from template_problems(self.path_templates, ("pathTemplates",))
        if not 1 <= len(self.rates) <= _MAX_RATES:
            yield (("rates",), f"{len(self.rates)} are given", f"1 to {_MAX_RATES} are allowed")
        for index, rate in enumerate(self.rates):
            yield from ((("rates", index, *at), given, allowed) for at, given, allowed in rate.problems())

    def _key_problems(self) -> Iterator[Finding]:
        if len(self.by) > _MAX_KEYS:
            yield (("by",), f"{len(self.by)} are given", f"at most {_MAX_KEYS} are allowed")
        for index, key in enumerate(self.by):
            if key not in _MORE_KEYS and not is_condition_key(key):
                allowed = f"one of {', '.join((*_MORE_KEYS, *CONDITION_KEYS))} is expected"
                yield (("by", index), f"{key!r} is given", allowed)
            if key in self.by[:index]:
                yield (("by", index), f"{key!r} is given twice", "each once")
        if (PATH_TEMPLATE in self.by) != bool(self.path_templates):
            given = "are given" if self.path_templates else "are not given"
            yield (("pathTemplates",), f"they {given}", f"they are for {PATH_TEMPLATE} among what is counted by")


class RateLimitPolicySpec(TargetedSpec):
    """The spec of a RateLimitPolicy. A request must be within all limits that count it."""

    scope: Scope = Scope.LOCAL
    on_error: OnError = OnError.DENY
    dry_run: bool = False
    limits: list[Limit]

    @property
    def is_global(self) -> bool:
        """Whether all sidecars count together."""
        return self.scope is Scope.GLOBAL

    def problems(self) -> list[Finding]:
        """See :meth:`Spec.problems`."""
        found = list(self.target_problems())
        if not 1 <= len(self.limits) <= _MAX_LIMITS:
            found.append((("limits",), f"{len(self.limits)} are given", f"1 to {_MAX_LIMITS} are allowed"))
        for index, limit in enumerate(self.limits):
            found += ((("limits", index, *at), given, allowed) for at, given, allowed in limit.problems())
        return found
