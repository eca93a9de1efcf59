"""Whether Rego policies are admitted, found out in a process that can be killed.

Parsing Rego takes time that its author chooses, and what the engine does not foresee may take its process down: so it
is done in a child with a bound on its memory, which is killed when it takes too long.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from peltast.authz.compile import compile_rego
from peltast.authz.revision import Revision
from peltast.policies.kinds.rego import Tier
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.rego_sources import RegoSource, TierChoice
from peltast.policies.snapshot import Snapshot

__all__ = ["RegoAdmission"]

TIME_LIMIT_SECONDS = 5.0
_MAX_ANSWER_BYTES = 1024 * 1024


class RegoAdmission:
    """Checks Rego policies, each distinct one once. Use as an asynchronous context manager."""

    def __init__(self) -> None:
        self._admitted: set[bytes] = set()
        self._refused: dict[bytes, Mapping[str, Any]] = {}
        self._worker: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> RegoAdmission:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop_worker()

    async def choose_tiers(self, snapshot: Snapshot) -> Snapshot:
        """The same snapshot with a tier for each Rego policy that asks for none: the sidecar's if it is admitted there.

        One that neither admits gets the check tier, whose refusal :meth:`check` then tells.
        """
        known, self._refused = self._refused, {}
        open_ = {name: source for name, source in snapshot.rego.items() if source.resource.spec.tier is None}
        return snapshot.with_tiers({name: await self._choose(source, known) for name, source in open_.items()})

    async def _choose(self, source: RegoSource, known: Mapping[bytes, Mapping[str, Any]]) -> TierChoice:
        for _, given, allowed in source.resource.spec.beyond(Tier.SIDECAR):
            return TierChoice(Tier.CHECK, f"{given}, {allowed}")
        document = compile_rego(source)
        refusal = known.get(document) or await self._refusal(document)
        if refusal is None:
            return TierChoice(Tier.SIDECAR, "sidecars admit it")
        self._refused[document] = refusal
        place = f"{refusal['file']}:{refusal['line']}: " if refusal.get("file") else ""
        return TierChoice(Tier.CHECK, f"{place}{refusal['reason']}")

    async def check(self, revision: Revision) -> None:
        """Checks the Rego policies of `revision`.

        Raises:
            InvalidConfiguration: with a problem for each policy that is not admitted.
        """
        problems = []
        for name, document in revision.rego.items():
            if (refusal := await self._refusal(document)) is not None:
                problems.append(_problem(revision, name, refusal))
        if problems:
            raise InvalidConfiguration(problems)
        self._admitted &= set(revision.rego.values())

    async def _refusal(self, document: bytes) -> Mapping[str, Any] | None:
        """As :meth:`_ask`, each admitted document once."""
        if document in self._admitted:
            return None
        refusal = await self._ask(document)
        if refusal is None:
            self._admitted.add(document)
        return refusal

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


def _problem(revision: Revision, name: str, refusal: Mapping[str, Any]) -> Problem:
    source = revision.snapshot.rego[name]
    document, file, line = source.resource.document, refusal.get("file", ""), refusal.get("line", 0)
    allowed = f"see docs/rego.md for what the {source.tier} tier admits"
    if file in source.all_modules and file.endswith(".rego"):
        return Problem(file, line, "", refusal["reason"], allowed)
    field = "spec.module" if source.resource.spec.module is not None else "spec"
    # An inline module begins on the line after its `module: |`.
    inside = document.line(("spec", "module")) + line if line else document.line(("spec",))
    return Problem(document.file, inside, field, refusal["reason"], allowed)
