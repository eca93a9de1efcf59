"""What stands behind the check service's ports: decides at once what it can, and has the check tier evaluated.

Like a sidecar, this process evaluates policies of the sidecar tier, which are bounded, and no others. So whatever a
policy of the check tier does, it can still say what becomes of the request without it.
"""

from __future__ import annotations

import asyncio
import time

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from peltast.authz._engine import LocalDecider, Question, Request
from peltast.authz.check.convert import check_response, engine_request
from peltast.authz.check.frames import Kind
from peltast.authz.check.pool import EvaluatorPool, Unanswered
from peltast.authz.check.programs import Programs, WorkloadProgram
from peltast.authz.check.service import check_asker
from peltast.authz.protos.check_pb2 import CheckRevision

__all__ = ["CheckFront"]


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

    async def check(self, request: CheckRequest, caller: str, *, sidecar: bool = False) -> CheckResponse:
        """Answers `request`, which `caller` (a SPIFFE ID) asks; `sidecar` where that is one of ours.

        Raises:
            NotYours: the caller is not the request's destination.
            UnknownDestination: no workload has the destination's principal and address.
            ValueError: the request is malformed.
        """
        check_asker(request, caller)
        programs = self._programs
        found = programs.find(request)
        asked = engine_request(request)
        now_ms = time.time_ns() // 1_000_000
        decision = self._decider.decide(found.program, found.keys, programs.revocations, asked, now_ms)
        if isinstance(decision, Question):
            return await self._have_evaluated(decision, found, request, asked, sidecar=sidecar)
        return check_response(decision, found.program, sidecar=sidecar)

    async def _have_evaluated(
        self, question: Question, found: WorkloadProgram, request: CheckRequest, asked: Request, *, sidecar: bool
    ) -> CheckResponse:
        kind = Kind.SIDECAR_QUESTION if sidecar else Kind.QUESTION
        try:
            answer = await self._pool.ask(kind, request.SerializeToString(), question.timeout_ms)
        except Unanswered as unanswered:
            decision = question.unanswered(found.program, asked, str(unanswered))
            return check_response(decision, found.program, sidecar=sidecar)
        return CheckResponse.FromString(answer)
