"""What holds for all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a run that fails says something of what was changed since the last. `make soak`
# tries others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("other", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("PELTAST_EXAMPLES", "same"))


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder for state. Its path is short: Unix sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="pt-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
