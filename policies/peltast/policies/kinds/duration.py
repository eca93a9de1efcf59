"""Durations as policies write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

__all__ = ["DurationText", "duration"]

DurationText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}(ms|s)$")]
"""A whole number of milliseconds or seconds, with its unit."""

_UNITS = {"ms": 1, "s": 1000}


def duration(text: str) -> timedelta:
    """The duration that `text`, a :data:`DurationText`, says."""
    number = text.rstrip("ms")
    return timedelta(milliseconds=int(number) * _UNITS[text[len(number) :]])
