"""Changes of the configuration as acts: who changed which resource, and how."""

from __future__ import annotations

import json
import pwd
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import structlog

from peltast.identity.acts import Act, Report
from peltast.identity.files import write_private
from peltast.policies.changes import Rendered, changes, rendered
from peltast.policies.snapshot import Snapshot

__all__ = ["ChangeLog", "owner_of"]

log = structlog.get_logger()


class ChangeLog:
    """Reports what a configuration changes of the one before it, which is kept in `kept` over restarts."""

    def __init__(self, folder: Path, kept: Path, report: Report) -> None:
        self._folder = folder
        self._kept = kept
        self._report = report

    def take(self, snapshot: Snapshot) -> None:
        """Reports an act for each resource that changed. What cannot be recorded now is with the next change."""
        before = self._before()
        after = rendered(snapshot, before)
        try:
            for change in changes(before, after):
                actor = owner_of(self._folder, change.files)
                self._report(Act(actor, "configuration.changed", change.object, allowed=True, detail=change.difference))
            write_private(self._kept, json.dumps({name: asdict(each) for name, each in after.items()}).encode())
        except OSError as error:
            log.exception("changes not recorded", error=str(error))

    def _before(self) -> dict[str, Rendered]:
        if not self._kept.exists():
            return {}
        kept = json.loads(self._kept.read_bytes())
        return {name: Rendered(tuple(each["files"]), each["text"], each["digest"]) for name, each in kept.items()}


def owner_of(folder: Path, files: Iterable[str]) -> str:
    """Who owns the file of `files` that was written last, as ``file:USER``; ``file:?`` where none is left."""
    found = [stat for file in files if (stat := _stat(folder / file)) is not None]
    if not found:
        return "file:?"
    uid = max(found, key=lambda each: each[0])[1]
    try:
        return f"file:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"file:{uid}"


def _stat(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_uid
