"""Peltast's own Rego modules, which RegoPolicies take by name. `docs/library.md` tells what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["library_modules"]

_HERE = Path(__file__).parent
_PLACES = (_HERE / "library", _HERE.parents[1] / "library")
"""In a wheel, and beside the sources."""


@cache
def library_modules() -> Mapping[str, str]:
    """Every module by its name; the name ``NAME`` is of the package ``peltast.NAME``."""
    folder = next(place for place in _PLACES if place.is_dir())
    files = (file for file in sorted(folder.glob("*.rego")) if not file.stem.endswith("_test"))
    return {file.stem: file.read_text() for file in files}
