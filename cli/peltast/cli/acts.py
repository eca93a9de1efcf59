"""Acts of the control plane as audit records, in a spool like any other."""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path

import structlog

from peltast.authz._engine import SpoolUsage, SpoolWriter
from peltast.identity.acts import Act

__all__ = ["ActLog"]

SPOOL_BYTES = 64 * 1024 * 1024
MAX_DETAIL = 64 * 1024
"""Far below the longest record that readers take."""

log = structlog.get_logger()


class ActLog:
    """Writes acts. The first is to be written after the shipper of the same folder was made, which counts it."""

    def __init__(self, spool: Path, actor: str) -> None:
        self._spool = spool
        self._actor = actor

    @cached_property
    def _writer(self) -> SpoolWriter:
        return SpoolWriter(self._spool, SpoolUsage(self._spool, SPOOL_BYTES), time.time_ns())

    def report(self, act: Act) -> None:
        """Writes one act.

        Raises:
            OSError: it could not be written; what is not recorded should not be done.
        """
        fields = {
            "actor": act.actor or self._actor,
            "action": act.action,
            "object": act.object,
            "effect": "allow" if act.allowed else "deny",
        }
        if act.detail:
            fields["detail"] = _shortened(act.detail)
        self._writer.append("act", time.time_ns(), fields)
        (log.info if act.allowed else log.warning)(act.action, **fields)


def _shortened(detail: str) -> str:
    left_out = len(detail) - MAX_DETAIL
    return detail if left_out <= 0 else f"{detail[:MAX_DETAIL]} … and {left_out} more characters"
