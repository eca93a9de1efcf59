"""What holds for all tests."""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

# The same examples in every run: a run that fails says something of what was changed since the last. `make soak`
# tries others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("other", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("PELTAST_EXAMPLES", "same"))

CLONE_NEWNET = 0x40000000
"""From Linux's sched.h."""


def pytest_configure(config: pytest.Config) -> None:
    """Gives each of several workers (`-n 2`) a network of its own: all meshes have the same addresses."""
    if not hasattr(config, "workerinput"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise pytest.UsageError(f"no network of one's own: {os.strerror(ctypes.get_errno())}. Be root, or leave out -n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.fixture(autouse=True)
def logs_as_by_default() -> Iterator[None]:
    """A command that was run says where logs go: to a file that is closed when its test is over."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder for state. Its path is short: Unix sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="pt-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
