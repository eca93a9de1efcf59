"""Files that hold secrets, and files that must never be half-written."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["make_private_folder", "write_private"]


def make_private_folder(folder: Path) -> Path:
    """Makes `folder` (0700) where it is missing, and what is missing above it."""
    for missing in [each for each in reversed(folder.parents) if not each.exists()]:
        missing.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would leave these open to others
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_private(path: Path, content: bytes) -> None:
    """Writes `path` with mode 0600: from its first moment, and whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # else a power loss may bring the old file back
    finally:
        os.close(folder)
