"""Cells of CSV that whoever opens the file does not run."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["neutralised"]

T = TypeVar("T")

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def neutralised(cell: T) -> T | str:
    """`cell`, made text where a spreadsheet would take it for a formula (OWASP, CSV injection)."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
