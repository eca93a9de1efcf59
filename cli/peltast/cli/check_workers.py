"""The processes of the check service, as the control plane sees them: started, told things, started again."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import structlog

from peltast.authz.check.counts import Counts
from peltast.authz.check.documents import check_revision
from peltast.authz.check.frames import Kind, frame, read_frame
from peltast.authz.check.metrics import CheckMetrics
from peltast.authz.revision import Revision
from peltast.cli.settings import ControlSettings
from peltast.identity.acts import Act, Report
from peltast.proxy.sidecar.supervise import STOP_SECONDS, dying_with_parent

__all__ = ["CheckWorkers"]

RESTART_SECONDS = 0.2
READY_SECONDS = 30.0
"""How long a configuration waits for the check service to decide by it, before sidecars are told of it."""

log = structlog.get_logger()


class CheckWorkers:
    """So many processes that share the check service's ports."""

    def __init__(self, settings: ControlSettings, number: int, report: Report) -> None:
        self._settings = settings
        self._report = report
        self.metrics = CheckMetrics()
        self._revision: bytes | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._started = [asyncio.Event() for _ in range(number)]
        self._running: set[_Worker] = set()

    def take(self, revision: Revision) -> None:
        """Has all of them decide by `revision`. Its Rego must have been admitted."""
        self._revision = frame(Kind.REVISION, check_revision(revision).SerializeToString())
        for worker in self._running:
            worker.tell_revision(self._revision)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._keep_running(started)) for started in self._started]

    async def ready(self) -> None:
        """Waits until each decides by the revision that was taken last, or for as long as that may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.gather(*(started.wait() for started in self._started))
                await asyncio.gather(*(worker.in_force.wait() for worker in self._running))

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._running]

    def renew_identity(self) -> None:
        """Has them show the SVID that is now on disk."""
        for worker in self._running:
            worker.tell(frame(Kind.IDENTITY))

    async def stop(self) -> None:
        """Ends all of them, once they have answered what they were asked."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_running(self, started: asyncio.Event) -> None:
        while True:
            worker = await _Worker.start(self._settings)
            self._running.add(worker)
            self.metrics.started(worker.pid)
            try:
                assert self._revision is not None
                worker.tell_revision(self._revision)
                started.set()
                async for counts in worker.counted():
                    self._count(worker.pid, counts)
                log.error("check worker ended", pid=worker.pid)
            finally:
                self._running.discard(worker)
                self.metrics.ended(worker.pid)
                await worker.end()
            await asyncio.sleep(RESTART_SECONDS)

    def _count(self, pid: int, counts: Counts) -> None:
        self.metrics.add(pid, counts)
        for (caller, why), number in counts.refused.items():
            self._report(Act(caller, "check.refuse", why, allowed=False, detail=f"{number} times"))


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._writer, self._reader = process, process.stdin, process.stdout
        self._pending = 0
        self.in_force = asyncio.Event()
        """It decides by the last revision that it was told."""

    @classmethod
    async def start(cls, settings: ControlSettings) -> _Worker:
        arguments = (str(settings.state), settings.trust_domain, str(settings.base_port))
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent([sys.executable, "-m", "peltast.cli.check_worker", *arguments]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: bytes) -> None:
        self._writer.write(message)

    def tell_revision(self, message: bytes) -> None:
        self._pending += 1
        self.in_force.clear()
        self.tell(message)

    async def counted(self) -> AsyncIterator[Counts]:
        """What it counts, until the process ends."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                kind, payload = await read_frame(self._reader)
                if kind is Kind.COUNTS:
                    yield Counts.load(payload)
                    continue
                self._pending -= 1
                if not self._pending:
                    self.in_force.set()

    async def end(self) -> None:
        self.in_force.set()  # nobody waits for it any more
        if self._process.returncode is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
