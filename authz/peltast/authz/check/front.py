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

from peltast.authz._engine import LocalDecider, Question, Request
from peltast.authz.check.convert import check_response
from peltast.authz.check.frames import Kind
from peltast.authz.check.pool import EvaluatorPool, Unanswered
from peltast.authz.check.programs import Programs, WorkloadProgram
from peltast.authz.check.service import check_asker
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
        asked = Request.from_check_request(question)
        check_asker(asked, caller)
        programs = self._programs
        found = programs.find(asked)
        now_ms = time.time_ns() // 1_000_000
        decision = self._decider.decide(found.program, found.keys, programs.revocations, asked, now_ms)
        if isinstance(decision, Question):
            return self._have_evaluated(decision, found, question, asked, sidecar=sidecar)
        return check_response(decision, found.referenced, sidecar=sidecar)

    async def _have_evaluated(
        self, asking: Question, found: WorkloadProgram, question: bytes, asked: Request, *, sidecar: bool
    ) -> CheckResponse:
        kind = Kind.SIDECAR_QUESTION if sidecar else Kind.QUESTION
        try:
            answer = await self._pool.ask(kind, question, asking.timeout_ms)
        except Unanswered as unanswered:
            decision = asking.unanswered(found.program, asked, str(unanswered))
            return check_response(decision, found.referenced, sidecar=sidecar)
        return CheckResponse.FromString(answer)
