"""Configuration from a folder: every YAML, Rego, JSON and descriptor file below it, and the bundles of Rego."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import watchfiles

from peltast.policies.problems import InvalidConfiguration, Problem

__all__ = ["Files", "read_folder", "watch_folder"]

Files = Mapping[str, bytes]
"""File contents by path relative to the folder, with forward slashes."""

SUFFIXES = (".yaml", ".yml", ".rego", ".json", ".pb", ".tar.gz")
MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_BUNDLE_FILE_BYTES = 64 * 1024 * 1024
"""Of a bundle's archive and of its data."""
MAX_FILES = 10_000
MAX_TOTAL_BYTES = 256 * 1024 * 1024

_OF_BUNDLES = (".manifest", ".signatures.json", "oci-layout")
_BLOB = re.compile(r"[0-9a-f]{64}")
"""What is in ``blobs/sha256`` of an OCI image layout."""

_WATCH_STEP_MS = 5
_WATCH_DEBOUNCE_MS = 50


def read_folder(folder: Path) -> Files:
    """Reads the configuration files of `folder`. Hidden files and folders are left out; links are not followed out.

    Raises:
        InvalidConfiguration: the folder or a file of it cannot be read, or is larger than any configuration is.
    """
    if not folder.is_dir():
        raise InvalidConfiguration(
            [Problem(str(folder), 0, "", "not a folder", "a folder of YAML and Rego is expected")]
        )
    files: dict[str, bytes] = {}
    problems: list[Problem] = []
    total = 0
    for path in _configuration_files(folder, problems):
        name = path.relative_to(folder).as_posix()
        content = _read(path, folder, name)
        if isinstance(content, Problem):
            problems.append(content)
            continue
        files[name] = content
        total += len(content)
        if len(files) > MAX_FILES or total > MAX_TOTAL_BYTES:
            allowed = f"at most {MAX_FILES} files and {MAX_TOTAL_BYTES // 1024**2} MiB are read"
            problems.append(Problem(str(folder), 0, "", "more than a configuration has", allowed))
            break
    if problems:
        raise InvalidConfiguration(problems)
    return files


async def watch_folder(folder: Path) -> AsyncIterator[Files | InvalidConfiguration]:
    """Gives what :func:`read_folder` gives, now and after every change of a configuration file."""
    changes = watchfiles.awatch(folder, watch_filter=_concerns, step=_WATCH_STEP_MS, debounce=_WATCH_DEBOUNCE_MS)
    while True:
        change = asyncio.ensure_future(anext(changes))
        try:
            await asyncio.sleep(0)  # the task's first step begins to watch: what changes while we read is not missed
            yield await asyncio.to_thread(_read_or_problems, folder)  # others wait for this thread
            await change
        finally:
            change.cancel()


def _read_or_problems(folder: Path) -> Files | InvalidConfiguration:
    try:
        return read_folder(folder)
    except InvalidConfiguration as invalid:
        return invalid


def _concerns(_: watchfiles.Change, path: str) -> bool:
    """Also what may be a folder, for one that is moved takes its files along, or a mounted ConfigMap's ``..data``."""
    return path.endswith(SUFFIXES) or "." not in Path(path).name.lstrip(".")


def _configuration_files(folder: Path, problems: list[Problem]) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        name = Path(os.fsdecode(error.filename or folder)).relative_to(folder).as_posix()
        problems.append(Problem(name, 0, "", f"cannot be listed: {error.strerror}", "a readable folder is expected"))

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _is_read(path := Path(parent, name)):
                yield path


def _is_read(path: Path) -> bool:
    plain = path.name.endswith(SUFFIXES) and not path.name.startswith(".")
    return plain or path.name in _OF_BUNDLES or _is_blob(path)


def _is_blob(path: Path) -> bool:
    return path.parts[-3:-1] == ("blobs", "sha256") and _BLOB.fullmatch(path.name) is not None


def _max_bytes(path: Path) -> int:
    is_large = path.name.endswith(".tar.gz") or path.name == "data.json" or _is_blob(path)
    return MAX_BUNDLE_FILE_BYTES if is_large else MAX_FILE_BYTES


def _read(path: Path, folder: Path, name: str) -> bytes | Problem:
    """The content of `path`; never more of it than is allowed, whatever its size claims to be."""
    most = _max_bytes(path)
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            return Problem(name, 0, "", "a link out of the folder", "files must be inside the folder")
        if not path.is_file():  # opening a pipe would wait for whoever writes into it
            return Problem(name, 0, "", "a pipe, a socket or a device is given", "a readable file is expected")
        with path.open("rb") as file:
            content = file.read(most + 1)
            given = os.fstat(file.fileno()).st_size
    except RuntimeError:
        return Problem(name, 0, "", "cannot be read: the link leads to itself", "a readable file is expected")
    except OSError as error:
        return Problem(name, 0, "", f"cannot be read: {error.strerror}", "a readable file is expected")
    if len(content) > most:
        size = f"{given:,} bytes are given"
        return Problem(name, 0, "", size, f"a file has at most {most:,} bytes")
    return content
