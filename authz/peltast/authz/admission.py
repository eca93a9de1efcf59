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
from dataclasses import replace
from typing import Any

from peltast.authz.admission_worker import Question
from peltast.authz.canonical import canonical
from peltast.authz.compile import compile_rego
from peltast.policies.kinds.rego import Tier
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.rego_sources import RegoSource
from peltast.policies.snapshot import Snapshot

__all__ = ["RegoAdmission"]

TIME_LIMIT_SECONDS = 5.0
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
_MAX_KNOWN = 4096
"""Answers that are remembered, and as many of those before."""


class _RefusedError(Exception):
    """A policy is refused in the tier that its source says."""

    def __init__(self, source: RegoSource, refusal: Mapping[str, Any]) -> None:
        self.source, self.refusal = source, refusal

    @property
    def is_lasting(self) -> bool:
        """Whether the engine refuses it; else a limit of the worker's is met, which may be for want of time."""
        return "policy" in self.refusal

    @property
    def why(self) -> str:
        place = f"{self.refusal['file']}:{self.refusal['line']}: " if self.refusal.get("file") else ""
        return f"{place}{self.refusal['reason']}"


class RegoAdmission:
    """Checks Rego policies, each distinct one once. Use as an asynchronous context manager."""

    def __init__(self) -> None:
        self._recent: dict[bytes, Mapping[str, Any]] = {}
        self._older: dict[bytes, Mapping[str, Any]] = {}
        self._worker: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> RegoAdmission:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_worker()

    async def check(self, snapshot: Snapshot) -> Snapshot:
        """`snapshot` with its Rego policies admitted, see :meth:`admit`.

        Raises:
            InvalidConfiguration: with a problem for each policy that is not admitted.
        """
        problems: list[Problem] = []
        admitted: dict[str, RegoSource] = {}
        for name, source in snapshot.rego.items():
            try:
                admitted[name] = await self.admit(source)
            except InvalidConfiguration as invalid:
                problems += invalid.problems
        if problems:
            raise InvalidConfiguration(problems)
        return replace(snapshot, rego=admitted)

    async def admit(self, source: RegoSource) -> RegoSource:
        """One policy, with what it reads of its data: the rest of it need not be loaded, neither here nor in sidecars.

        One that asks for no tier gets the sidecar's if it is admitted there, else the check service's.

        Raises:
            InvalidConfiguration: it is not admitted.
        """
        try:
            return await self._admit(source)
        except _RefusedError as error:
            raise InvalidConfiguration([_problem(error.source, error.refusal)]) from None

    async def _admit(self, source: RegoSource) -> RegoSource:
        spec = source.resource.spec
        if spec.tier is not None:
            return await self._load(source)
        for _, given, allowed in spec.beyond(Tier.SIDECAR):
            return await self._load(source.in_tier(Tier.CHECK, f"{given}, {allowed}"))
        try:
            return await self._load(source.in_tier(Tier.SIDECAR, "sidecars admit it"))
        except _RefusedError as error:
            if not error.is_lasting:
                raise  # where it is decided does not depend on how busy this machine is
            return await self._load(source.in_tier(Tier.CHECK, error.why))

    async def _load(self, source: RegoSource) -> RegoSource:
        outline = {"tier": source.tier.value, "modules": dict(source.all_modules)}
        paths = await self._answer(Question.READ, canonical(outline), source)
        admitted = replace(source, read=frozenset(map(tuple, paths)))
        await self._answer(Question.LOAD, compile_rego(admitted), admitted)
        return admitted

    async def _answer(self, question: Question, document: bytes, source: RegoSource) -> Any:
        key = hashlib.sha256(question.value + document).digest()
        known = self._recent.get(key) or self._older.get(key)
        if known is None:
            async with self._turn:
                known = await self._ask(question, document)
        refused = known["refusal"] and _RefusedError(source, known["refusal"])
        if not refused or refused.is_lasting:
            self._remember(key, known)
        if refused:
            raise refused
        return known["answer"]

    def _remember(self, key: bytes, answer: Mapping[str, Any]) -> None:
        if len(self._recent) >= _MAX_KNOWN:
            self._older, self._recent = self._recent, {}
        self._recent[key] = answer

    async def _ask(self, question: Question, document: bytes) -> Mapping[str, Any]:
        """The worker's answer, or a refusal in its place."""
        worker = self._worker or await self._start_worker()
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(question.value + len(document).to_bytes(8, "big") + document)
            return _read_answer(await asyncio.wait_for(worker.stdout.readline(), TIME_LIMIT_SECONDS))
        except TimeoutError:
            await self._stop_worker()
            return _refused(f"loading it takes longer than {TIME_LIMIT_SECONDS:g} s")
        except (ValueError, ConnectionError):
            await self._stop_worker()
            return _refused("loading it ended the process that tried: it takes too much memory, or nests too deep")
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


def _read_answer(line: bytes) -> Mapping[str, Any]:
    """The worker's answer. A line that is cut short (the worker died) raises ValueError."""
    answer: Mapping[str, Any] = json.loads(line)
    return answer


def _refused(reason: str) -> Mapping[str, Any]:
    return {"answer": None, "refusal": {"reason": reason}}


def _problem(source: RegoSource, refusal: Mapping[str, Any]) -> Problem:
    document, file, line = source.resource.document, refusal.get("file", ""), refusal.get("line", 0)
    allowed = f"see docs/rego.md for what the {source.tier} tier admits"
    if file in source.all_modules and file.endswith(".rego"):
        return Problem(file, line, "", refusal["reason"], allowed)
    field = "spec.module" if source.resource.spec.module is not None else "spec"
    # An inline module begins on the line after its `module: |`.
    inside = document.line(("spec", "module")) + line if line else document.line(("spec",))
    return Problem(document.file, inside, field, refusal["reason"], allowed)
