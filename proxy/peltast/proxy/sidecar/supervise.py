"""Keeping a child process running, and leaving none behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog

__all__ = ["Supervised", "dying_with_parent"]

RESTART_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_SECONDS = 10.0
"""A child that has run this long is restarted without a wait."""

STOP_SECONDS = 2.0
"""How long a child may take to end by itself before it is killed."""

log = structlog.get_logger()


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """`command`, killed by the kernel when the process that starts it dies, however it dies (`PR_SET_PDEATHSIG`)."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


class Supervised:
    """One child: started, started again when it ends, and ended when :meth:`run` is cancelled.

    `environment` is asked for at every start: what is good once cannot be handed on to the next.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Callable[[], Awaitable[Mapping[str, str]]],
        log_file: Path,
        folder: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._log_file = log_file
        self._folder = folder
        self._stop_signal = stop_signal
        self.pid: int | None = None

    async def run(self) -> None:
        """Keeps the child running for ever."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            started = loop.time()
            code = await self._run_once()
            attempt = 0 if loop.time() - started >= STEADY_SECONDS else attempt + 1
            delay = RESTART_SECONDS[min(attempt, len(RESTART_SECONDS) - 1)]
            log.warning("process ended", name=self.name, code=code, log=str(self._log_file), again_in_seconds=delay)
            await asyncio.sleep(delay)

    async def _run_once(self) -> int:
        environment = dict(await self._environment())
        with self._log_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *dying_with_parent(self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=self._folder,
                start_new_session=True,
            )
        self.pid = process.pid
        try:
            return await process.wait()
        finally:
            self.pid = None
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            return
        process.send_signal(self._stop_signal)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        if process.returncode is None:
            process.kill()
            await process.wait()
