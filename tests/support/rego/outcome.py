"""What becomes of a module that is asked: its answer as JSON, or one of these."""

from __future__ import annotations

import json
from typing import Any

from peltast.authz._engine import QueryError, QueryRefused, RegoQuery

Outcome = Any

UNDEFINED = "undefined"
ERROR = "an error"
REFUSED = "refused"


class Ours:
    """One of our tiers, with a module."""

    def __init__(self, tier: str, module: str, data: str) -> None:
        self.refusal: str | None = None
        try:
            self._policy = RegoQuery.load(tier, {"p.rego": module}, data)
        except QueryRefused as error:
            self.refusal = str(error)

    def answer(self, given: str) -> Outcome:
        """What `data.p.answer` is."""
        if self.refusal is not None:
            return REFUSED
        try:
            answers = json.loads(self._policy.evaluate("data.p.answer = x", input=given))
        except QueryError:
            return ERROR
        return answers[0]["x"] if answers else UNDEFINED


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are the same; a number may be written in several ways."""
    return bool(one == other) and _kinds(one) == _kinds(other)


def _kinds(value: Any) -> Any:
    """Python takes `true` for 1, and Rego does not."""
    if isinstance(value, list):
        return [_kinds(item) for item in value]
    if isinstance(value, dict):
        return {key: _kinds(item) for key, item in value.items()}
    return isinstance(value, bool)
