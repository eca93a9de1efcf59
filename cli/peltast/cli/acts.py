"""Acts of the control plane as audit records, in a spool like any other."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from peltast.authz._engine import SpoolUsage, SpoolWriter
from peltast.identity.acts import Act

__all__ = ["ActLog"]

SPOOL_BYTES = 64 * 1024 * 1024

log = structlog.get_logger()


class ActLog:
    """Writes acts. Make it after the shipper of the same folder, which counts what is there."""

    def __init__(self, spool: Path, actor: str) -> None:
        self._writer = SpoolWriter(spool, SpoolUsage(spool, SPOOL_BYTES), time.time_ns())
        self._actor = actor

    def report(self, act: Act) -> None:
        """Writes one act."""
        fields = {
            "actor": act.actor or self._actor,
            "action": act.action,
            "object": act.object,
            "effect": "allow" if act.allowed else "deny",
        }
        if act.detail:
            fields["detail"] = act.detail
        self._writer.append("act", time.time_ns(), fields)
        (log.info if act.allowed else log.warning)(act.action, **fields)
