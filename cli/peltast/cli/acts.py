"""Acts of the control plane as audit records, in a spool like any other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from peltast.authz._engine import SpoolStart, SpoolUsage, SpoolWriter
from peltast.identity.acts import Act

__all__ = ["ActLog"]

SPOOL_BYTES = 64 * 1024 * 1024
HEARTBEAT_SECONDS = 10.0
MAX_DETAIL = 64 * 1024
"""Far below the longest record that readers take."""

log = structlog.get_logger()


class ActLog:
    """Writes acts. The first is to be written after the shipper of the same folder was made, which counts it.

    `start` gives what the spool is begun with: the bytes of a start, asked for once.
    """

    def __init__(self, spool: Path, actor: str, start: Callable[[], bytes]) -> None:
        self._spool = spool
        self._actor = actor
        self._start = start
        self._open: SpoolWriter | None = None

    @property
    def _writer(self) -> SpoolWriter:
        if self._open is None:
            usage = SpoolUsage(self._spool, SPOOL_BYTES)
            self._open = SpoolWriter(self._spool, usage, SpoolStart(self._start()), time.time_ns())
        return self._open

    async def beat(self) -> None:
        """Says for ever that the process lives and where its spool stands."""
        while True:
            try:
                self._writer.heartbeat(time.time_ns())
            except OSError as error:
                log.warning("no heartbeat", error=str(error))
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def close(self) -> None:
        """Ends the spool in order, if there is one."""
        if self._open is not None:
            self._open.close()

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
