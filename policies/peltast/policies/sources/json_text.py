"""JSON text to plain values, strictly: what is read can be written again, and read by the engine."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["read_json"]

_LEVELS_LEFT = 64
"""How much deeper what was read may be put into other documents."""


def read_json(text: str) -> Any:
    """The value of `text`.

    Raises:
        ValueError: it is no JSON, is nested too deep, names a member twice, or holds what JSON in UTF-8 cannot: NaN,
            infinity, half a surrogate pair.
    """
    try:
        value = json.loads(text, object_pairs_hook=_members)
        json.dumps(_nested(value), ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair") from None
    return value


def _nested(value: Any) -> Any:
    for _ in range(_LEVELS_LEFT):
        value = [value]
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. What another reader would take for another value is refused."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"{name!r} is given twice")
        members[name] = value
    return members
