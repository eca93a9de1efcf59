"""What stands behind the check service's ports: decides at once what it can, and has the check tier evaluated.

Like a sidecar, this process evaluates policies of the sidecar tier, which are bounded, and no others. So whatever a
policy of the check tier does, it can still say what becomes of the request without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeAlias

from envoy.service.auth.v3.external_auth_pb2 import CheckResponse

from peltast.authz._engine import Decision, LocalDecider, Question, Request
from peltast.authz.check.convert import METADATA_KEY, check_response
from peltast.authz.check.counts import Counts
from peltast.authz.check.frames import Kind
from peltast.authz.check.pool import EvaluatorPool, Unanswered
from peltast.authz.check.programs import Programs, UnknownDestination, WorkloadProgram
from peltast.authz.check.service import NotYours, check_asker
from peltast.authz.protos.check_pb2 import CheckRevision

__all__ = ["CheckFront", "Checked"]

Checked: TypeAlias = CheckResponse | Coroutine[Any, Any, CheckResponse]
"""An answer that is there, or comes."""


class CheckFront:
    """Decides requests by the programs of one revision at a time."""

    def __init__(self, pool: EvaluatorPool) -> None:
        self._pool = pool
        self._decider = LocalDecider()
        self._programs = Programs.none()
        self._ended = 0
        self.counts = Counts()

    async def take(self, revision: bytes) -> None:
        """Decides by `revision` (a CheckRevision), whose Rego must have been admitted, once this returns."""
        programs = await asyncio.to_thread(Programs.load, CheckRevision.FromString(revision), self._programs)
        if programs.have_check_tier:
            await self._pool.take(revision)
        self._programs = programs

    def check(self, question: bytes, caller: str, *, sidecar: bool = False) -> Checked:
        """Answers `question` (a CheckRequest), which `caller` (a SPIFFE ID) asks; `sidecar` where that is one of ours.

        The answer is given at once, unless a policy of the check tier must be evaluated: then it is awaited.

        Raises:
            NotYours: the caller is not the request's destination.
            UnknownDestination: no workload has the destination's principal and address.
            ValueError: the question is malformed.
        """
        began = time.monotonic()
        try:
            return self._check(question, caller, began, sidecar=sidecar)
        except (NotYours, UnknownDestination, ValueError) as error:
            self.counts.refuse(caller, str(error))
            raise

    def counted(self) -> Counts:
        """What was counted since this was asked last."""
        counted, self.counts = self.counts, Counts()
        counted.evaluators_ended, counted.waiting = self._pool.ended - self._ended, self._pool.waiting
        self._ended = self._pool.ended
        return counted

    def _check(self, question: bytes, caller: str, began: float, *, sidecar: bool) -> Checked:
        asked = Request.from_check_request(question)
        check_asker(asked, caller)
        programs = self._programs
        found = programs.find(asked)
        now_ms = time.time_ns() // 1_000_000
        decision = self._decider.decide(found.program, found.keys, programs.revocations, asked, now_ms)
        if isinstance(decision, Question):
            return self._have_evaluated(decision, found, question, asked, began, sidecar=sidecar)
        return self._answered(decision, found, began, sidecar=sidecar)

    def _answered(self, decision: Decision, found: WorkloadProgram, began: float, *, sidecar: bool) -> CheckResponse:
        effect = "allow" if decision.allowed else "deny"
        self.counts.decided(effect, decision.decided_by, time.monotonic() - began)
        return check_response(decision, found.referenced, sidecar=sidecar)

    async def _have_evaluated(
        self,
        asking: Question,
        found: WorkloadProgram,
        question: bytes,
        asked: Request,
        began: float,
        *,
        sidecar: bool,
    ) -> CheckResponse:
        kind = Kind.SIDECAR_QUESTION if sidecar else Kind.QUESTION
        try:
            answer = CheckResponse.FromString(await self._pool.ask(kind, question, asking.timeout_ms))
        except Unanswered as unanswered:
            self.counts.unanswered[unanswered.why] += 1
            decision = asking.unanswered(found.program, asked, str(unanswered))
            return self._answered(decision, found, began, sidecar=sidecar)
        effect = "deny" if answer.status.code else "allow"
        self.counts.decided(effect, answer.dynamic_metadata[METADATA_KEY]["source"], time.monotonic() - began)
        return answer
