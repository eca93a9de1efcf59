"""The check service's core: the decision about a CheckRequest, every policy evaluated here. No network."""

from __future__ import annotations

import time

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from peltast.authz._engine import Decider, Decision, Request
from peltast.authz.check.convert import check_response
from peltast.authz.check.programs import Programs, UnknownDestination, WorkloadProgram
from peltast.authz.protos.check_pb2 import CheckRevision

__all__ = ["CheckService", "NotYours", "UnknownDestination", "check_asker"]


class NotYours(PermissionError):
    """A workload asked about requests to another."""


def check_asker(asked: Request, caller: str) -> None:
    """Checks that `caller` (a SPIFFE ID) may ask about `asked`.

    Raises:
        NotYours: the caller is not the request's destination.
    """
    if caller != asked.destination_principal:
        raise NotYours(f"{caller} asks about requests to {asked.destination_principal or 'nobody'}")


class CheckService:
    """Decides requests by the programs of one revision at a time.

    With `counts`, RateLimitPolicies are enforced, as for tools: sidecars, which ask the service, count by themselves.
    """

    def __init__(self, *, counts: bool = False) -> None:
        self._decider = Decider(counts=counts)
        self._programs = Programs.none()

    def take(self, revision: CheckRevision) -> None:
        """Decides by `revision` from now on. Its Rego must have been admitted."""
        self._programs = Programs.load(revision, self._programs)

    def check(self, request: CheckRequest, caller: str, *, sidecar: bool = False) -> CheckResponse:
        """Answers `request`, which `caller` (a SPIFFE ID) asks; `sidecar` where that is one of ours.

        Raises:
            NotYours: the caller is not the request's destination.
            UnknownDestination: see there.
            ValueError: the request is malformed.
        """
        asked = Request.from_check_request(request.SerializeToString())
        check_asker(asked, caller)
        return self._answer(asked, sidecar=sidecar)

    def answer(self, question: bytes, *, sidecar: bool) -> CheckResponse:
        """Answers `question` (a CheckRequest), which somebody asks who may.

        Raises:
            UnknownDestination: see there.
            ValueError: the request is malformed.
        """
        return self._answer(Request.from_check_request(question), sidecar=sidecar)

    def decide(self, request: CheckRequest) -> Decision:
        """The decision about `request`, for tools that ask for themselves.

        Raises:
            UnknownDestination: see there.
            ValueError: the request is malformed.
        """
        return self._decide(Request.from_check_request(request.SerializeToString()))[0]

    def _answer(self, asked: Request, *, sidecar: bool) -> CheckResponse:
        decision, found = self._decide(asked)
        return check_response(decision, found.referenced, sidecar=sidecar)

    def _decide(self, asked: Request) -> tuple[Decision, WorkloadProgram]:
        programs = self._programs
        found = programs.find(asked)
        now_ms = time.time_ns() // 1_000_000
        return self._decider.decide(found.program, found.keys, programs.revocations, asked, now_ms), found
