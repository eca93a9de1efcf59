"""Evaluators, each with one request at a time: kept running, and killed alone where one passes a deadline.

At most so many requests wait for a free one. One over that is told at once that there is no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from enum import StrEnum
from typing import Any

import structlog

from peltast.authz.check.frames import Kind, frame, read_frame

__all__ = ["EvaluatorPool", "Unanswered"]

EVALUATORS = 2
"""One may hang until its deadline, and the requests of others go on."""

WAITING = 64
"""Requests that may wait for a free evaluator."""

GRACE_SECONDS = 0.05
"""How long after its deadline an evaluator may still come to an end by itself: most policies that take too long do,
by the clock that the interpreter reads. The request is answered before."""

MEMORY_BYTES = 1024 * 1024 * 1024
"""Address space of an evaluator: as much as policies have when they are admitted."""

LOAD_SECONDS = 30.0
"""What a process may take to start and to load a revision, whose every policy loaded within 5 s when admitted."""

RESTART_SECONDS = 0.5
"""Before the next try, where an evaluator has not come as far as taking questions."""

log = structlog.get_logger()


class Why(StrEnum):
    """Why there is no answer, for counting."""

    CAPACITY = "over_capacity"
    NO_EVALUATOR = "no_evaluator"
    TIMEOUT = "timeout"
    DIED = "evaluator_died"
    FAILED = "failed"


class Unanswered(Exception):
    """There is no answer; the message says why, for people."""

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why = why


class EvaluatorPool:
    """Starts evaluators when there is a revision that needs them."""

    def __init__(self, size: int = EVALUATORS, waiting: int = WAITING, memory_bytes: int = MEMORY_BYTES) -> None:
        self._size = size
        self._memory_bytes = memory_bytes
        self._most_waiting = waiting
        self._revision: bytes | None = None
        self._slots: list[asyncio.Task[None]] = []
        self._running: set[_Evaluator] = set()
        self._idle: deque[_Evaluator] = deque()
        self._waiting: deque[asyncio.Future[_Evaluator]] = deque()
        self._ending: set[asyncio.Task[None]] = set()
        self.ended = 0
        """Evaluators that died or were killed."""

    @property
    def pids(self) -> list[int]:
        """Process ids of the evaluators."""
        return [evaluator.pid for evaluator in self._running]

    @property
    def waiting(self) -> int:
        """Questions that wait for an evaluator."""
        return len(self._waiting)

    async def take(self, revision: bytes) -> None:
        """Evaluates by `revision` (a CheckRevision) from now on; returns once every evaluator does."""
        self._revision = revision
        if self._slots:
            await asyncio.gather(*(evaluator.load(revision) for evaluator in list(self._running)))
            return
        tried = [asyncio.Event() for _ in range(self._size)]
        self._slots = [asyncio.create_task(self._keep_running(each)) for each in tried]
        await asyncio.gather(*(each.wait() for each in tried))

    async def stop(self) -> None:
        """Ends all evaluators."""
        for task in [*self._slots, *self._ending]:
            task.cancel()
        await asyncio.gather(*self._slots, *self._ending, return_exceptions=True)
        self._slots.clear()

    async def ask(self, kind: Kind, question: bytes, timeout_ms: int) -> bytes:
        """The answer to `question` (a CheckRequest), a CheckResponse.

        Raises:
            Unanswered: there is none, or none in time.
        """
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        evaluator = await self._free(deadline)
        answer = evaluator.ask(kind, question)
        try:
            await _until(answer, deadline)
        finally:
            if answer.done():
                self._release(evaluator)
            else:  # or whoever asked has gone
                self._end_later(evaluator, answer, deadline)
        if not answer.done():
            raise Unanswered(Why.TIMEOUT, f"the policy took longer than {timeout_ms} ms")
        return answer.result()

    async def _free(self, deadline: float) -> _Evaluator:
        while self._idle:
            evaluator = self._idle.popleft()
            if evaluator.is_alive:
                return evaluator
        if len(self._waiting) >= self._most_waiting:
            raise Unanswered(Why.CAPACITY, "the check service is over capacity")
        waiter: asyncio.Future[_Evaluator] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await _until(waiter, deadline)
        except asyncio.CancelledError:
            if not waiter.cancel():
                self._release(waiter.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)
        if not waiter.done():
            raise Unanswered(Why.NO_EVALUATOR, "no evaluator was free in time")
        return waiter.result()

    def _release(self, evaluator: _Evaluator) -> None:
        if not evaluator.is_alive:
            return
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(evaluator)
                return
        self._idle.append(evaluator)

    def _end_later(self, evaluator: _Evaluator, answer: asyncio.Future[bytes], deadline: float) -> None:
        ending = asyncio.create_task(self._end(evaluator, answer, deadline))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _end(self, evaluator: _Evaluator, answer: asyncio.Future[bytes], deadline: float) -> None:
        """Kills what passes its deadline, unless it comes to an end within the grace."""
        await _until(answer, deadline + GRACE_SECONDS)
        if answer.done():
            self._release(evaluator)
        else:
            evaluator.kill()

    async def _keep_running(self, tried: asyncio.Event) -> None:
        while True:
            evaluator = await _Evaluator.start(self._memory_bytes)
            self._running.add(evaluator)
            try:
                is_ready = await self._make_ready(evaluator)
                tried.set()
                if not is_ready:
                    await asyncio.sleep(RESTART_SECONDS)
                    continue
                self._release(evaluator)
                log.warning("evaluator ended", pid=evaluator.pid, code=await evaluator.wait())
            finally:
                self._running.discard(evaluator)
                await evaluator.end()
                self.ended += 1

    async def _make_ready(self, evaluator: _Evaluator) -> bool:
        """Has it load the revision in force; another one may come while it does."""
        loaded = None
        while evaluator.is_alive and loaded is not self._revision:
            assert self._revision is not None
            loaded = self._revision
            await evaluator.load(loaded)
        return evaluator.is_alive


class _Evaluator:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._writer, self._reader = process, process.stdin, process.stdout
        self._loading: deque[asyncio.Future[None]] = deque()
        self._answer: asyncio.Future[bytes] | None = None
        self.is_alive = True
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, memory_bytes: int) -> _Evaluator:
        process = await asyncio.create_subprocess_exec(
            # Killed by the kernel when this process dies: one that hangs would not see the end of its pipe.
            *("setpriv", "--pdeathsig", "KILL"),
            *(sys.executable, "-m", "peltast.authz.check.evaluator", str(memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # One that dies for lack of memory dies at once: naming the frames of its stack takes a second.
            env={**os.environ, "RUST_BACKTRACE": "0"},
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def load(self, revision: bytes) -> None:
        """Has it decide by `revision`; one that takes too long is killed."""
        if not self.is_alive:
            return
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loading.append(loaded)
        self._writer.write(frame(Kind.REVISION, revision))
        await _until(loaded, asyncio.get_running_loop().time() + LOAD_SECONDS)
        if not loaded.done():
            log.error("evaluator did not load the revision in time", pid=self.pid)
            self.kill()

    def ask(self, kind: Kind, question: bytes) -> asyncio.Future[bytes]:
        """Asks. The answer fails with :exc:`Unanswered` where there is none."""
        self._answer = asyncio.get_running_loop().create_future()
        self._writer.write(frame(kind, question))
        return self._answer

    def kill(self) -> None:
        self.is_alive = False
        if self._process.returncode is None:
            self._process.kill()

    async def wait(self) -> int:
        """The code that the process ends with."""
        return await self._process.wait()

    async def end(self) -> None:
        self.kill()
        await self._process.wait()
        await self._reading

    async def _read(self) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self._received(*await read_frame(self._reader))
        self.is_alive = False
        for loaded in self._loading:
            _settle(loaded, None)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Unanswered(Why.DIED, "the policy ended the process that evaluated it"))
            self._answer.exception()  # nobody may be there any more to look at it

    def _received(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.IN_FORCE:
            _settle(self._loading.popleft(), None)
        elif self._answer is None:
            raise EOFError("an answer to no question")
        elif kind is Kind.ANSWER:
            _settle(self._answer, payload)
        elif not self._answer.done():
            self._answer.set_exception(Unanswered(Why.FAILED, payload.decode(errors="replace")))
            self._answer.exception()


async def _until(future: asyncio.Future[Any], deadline: float) -> None:
    """Waits for `future`, which is left as it is, until `deadline` by the loop's clock."""
    await asyncio.wait([future], timeout=max(0.0, deadline - asyncio.get_running_loop().time()))


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
