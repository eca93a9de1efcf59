"""Whether Rego policies are admitted, found out in a process that can be killed.

Parsing Rego takes time that its author chooses, and what the engine does not foresee may take its process down: so it
is done in a child with a bound on its memory, which is killed when it takes too long.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from peltast.authz.compile import compile_rego
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.rego_sources import RegoSource
from peltast.policies.snapshot import Snapshot

__all__ = ["RegoAdmission"]

TIME_LIMIT_SECONDS = 5.0
_MAX_ANSWER_BYTES = 1024 * 1024


class RegoAdmission:
    """Checks Rego policies, each distinct one once. Use as an asynchronous context manager."""

    def __init__(self) -> None:
        self._admitted: set[bytes] = set()
        self._worker: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> RegoAdmission:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_worker()

    async def check(self, snapshot: Snapshot) -> None:
        """Checks the Rego policies of `snapshot`.

        Raises:
            InvalidConfiguration: with a problem for each policy that is not admitted.
        """
        problems: list[Problem] = []
        for source in snapshot.rego.values():
            try:
                await self.admit(source)
            except InvalidConfiguration as invalid:
                problems += invalid.problems
        if problems:
            raise InvalidConfiguration(problems)
        self._admitted &= {_digest(compile_rego(source)) for source in snapshot.rego.values()}

    async def admit(self, source: RegoSource) -> None:
        """Checks one policy.

        Raises:
            InvalidConfiguration: it is not admitted.
        """
        document = compile_rego(source)
        if _digest(document) in self._admitted:
            return
        async with self._turn:
            refusal = await self._ask(document)
        if refusal is not None:
            raise InvalidConfiguration([_problem(source, refusal)])
        self._admitted.add(_digest(document))

    async def _ask(self, document: bytes) -> Mapping[str, Any] | None:
        """Why the document's policy is refused; none where it is admitted."""
        worker = self._worker or await self._start_worker()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(len(document).to_bytes(8, "big") + document)
            answer = await asyncio.wait_for(worker.stdout.readline(), TIME_LIMIT_SECONDS)
            return _read_answer(answer)
        except TimeoutError:
            await self._stop_worker()
            return {"reason": f"loading it takes longer than {TIME_LIMIT_SECONDS:g} s"}
        except (ValueError, ConnectionError):
            await self._stop_worker()
            return {"reason": "loading it ended the process that tried: it takes too much memory, or nests too deep"}
        except asyncio.CancelledError:
            await self._stop_worker()  # else its answer would be taken for that to the next question
            raise

    async def _start_worker(self) -> asyncio.subprocess.Process:
        self._worker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "peltast.authz.admission_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_MAX_ANSWER_BYTES,
        )
        return self._worker

    async def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()


def _read_answer(line: bytes) -> Mapping[str, Any] | None:
    """The worker's answer. A line that is cut short (the worker died) raises ValueError."""
    answer: Mapping[str, Any] | None = json.loads(line)
    return answer


def _digest(document: bytes) -> bytes:
    return hashlib.sha256(document).digest()


def _problem(source: RegoSource, refusal: Mapping[str, Any]) -> Problem:
    document, file, line = source.resource.document, refusal.get("file", ""), refusal.get("line", 0)
    allowed = "see docs/rego.md for what the sidecar tier admits"
    if file in source.all_modules and file.endswith(".rego"):
        return Problem(file, line, "", refusal["reason"], allowed)
    field = "spec.module" if source.resource.spec.module is not None else "spec"
    # An inline module begins on the line after its `module: |`.
    inside = document.line(("spec", "module")) + line if line else document.line(("spec",))
    return Problem(document.file, inside, field, refusal["reason"], allowed)
