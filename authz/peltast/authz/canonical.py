"""JSON of which there is one way to write it: documents are named by its hash."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["Json", "canonical"]

Json = dict[str, Any]


def canonical(document: Json) -> bytes:
    """`document`, with its members in order and no white space."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
