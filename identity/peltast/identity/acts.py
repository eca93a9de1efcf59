"""What the control plane did: a value that whoever wires the planes together turns into an audit record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Act", "Report"]


@dataclass(frozen=True)
class Act:
    """One act: who did (or was refused) what, to what."""

    actor: str
    action: str
    object: str
    allowed: bool
    detail: str = ""


Report = Callable[[Act], None]
