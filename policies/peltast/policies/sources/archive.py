"""A bundle's archive (tar, compressed by gzip) to the files in it, within bounds."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from io import BytesIO

from peltast.policies.sources.folder import Files

__all__ = ["inner_path", "unpack"]

MAX_BYTES = 128 * 1024 * 1024
"""Of all that an archive holds: a few kilobytes of it can be gigabytes of zeros."""
MAX_MEMBERS = 10_000
MAX_PATH_PARTS = 32
_MAX_SHOWN = 200


def unpack(archive: bytes) -> Files:
    """The files of `archive` by their paths in it, without a leading slash.

    Raises:
        ValueError: it is none, is cut short, holds too much, or has a member that is no plain file inside it.
    """
    try:
        return dict(_members(_inflated(archive)))
    except (tarfile.TarError, zlib.error, EOFError, OSError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a tar archive compressed by gzip: {error}") from None


def inner_path(name: str) -> str:
    """`name` as a path inside a bundle. OPA writes paths with a leading slash, tar with a leading ``./``.

    Raises:
        ValueError: it is none, or leads out of the bundle.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    shown = repr(name[:_MAX_SHOWN])
    if ".." in parts or "\\" in name:
        raise ValueError(f"{shown}: the path leads out of the bundle")
    if not parts or len(parts) > MAX_PATH_PARTS or not name.isprintable():
        raise ValueError(f"{shown}: a path of 1 to {MAX_PATH_PARTS} printable names is expected")
    return "/".join(parts)


def _inflated(archive: bytes) -> bytes:
    with gzip.GzipFile(fileobj=BytesIO(archive)) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"the archive holds more than {MAX_BYTES // 1024**2} MiB")
    return content


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    with tarfile.open(fileobj=BytesIO(content), mode="r:") as tar:
        for number, member in enumerate(tar):
            if number >= MAX_MEMBERS:
                raise ValueError(f"the archive has more than {MAX_MEMBERS} members")
            if member.isdir():
                continue
            name = inner_path(member.name)
            if name in seen:
                raise ValueError(f"{name}: is in the archive twice")
            seen.add(name)
            yield name, _content(tar, member, len(content))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, limit: int) -> bytes:
    """A member's bytes. One that claims more than the whole archive has (a sparse file) is not read."""
    file = tar.extractfile(member) if member.isreg() and not member.issparse() and member.size <= limit else None
    if file is None:
        raise ValueError(f"{inner_path(member.name)}: a plain file is expected, and no link, device or sparse file")
    content = file.read()
    if len(content) != member.size:
        raise ValueError(f"{inner_path(member.name)}: is cut short")
    return content
