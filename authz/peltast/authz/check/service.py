"""The check service's core: the decision about a CheckRequest, every policy evaluated here. No network."""

from __future__ import annotations

import time

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from peltast.authz._engine import Decider, Decision, Program
from peltast.authz.check.convert import check_response, engine_request
from peltast.authz.check.programs import Programs, UnknownDestination
from peltast.authz.protos.check_pb2 import CheckRevision

__all__ = ["CheckService", "NotYours", "UnknownDestination", "check_asker"]


class NotYours(PermissionError):
    """A workload asked about requests to another."""


def check_asker(request: CheckRequest, caller: str) -> None:
    """Checks that `caller` (a SPIFFE ID) may ask `request`.

    Raises:
        NotYours: the caller is not the request's destination.
    """
    destination = request.attributes.destination.principal
    if caller != destination:
        raise NotYours(f"{caller} asks about requests to {destination or 'nobody'}")


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
        check_asker(request, caller)
        return self.answer(request, sidecar=sidecar)

    def answer(self, request: CheckRequest, *, sidecar: bool) -> CheckResponse:
        """Answers `request`, which somebody asks who may.

        Raises:
            UnknownDestination: see there.
            ValueError: the request is malformed.
        """
        decision, program = self._decide(request)
        return check_response(decision, program, sidecar=sidecar)

    def decide(self, request: CheckRequest) -> Decision:
        """The decision about `request`, for tools that ask for themselves.

        Raises:
            UnknownDestination: see there.
            ValueError: the request is malformed.
        """
        return self._decide(request)[0]

    def _decide(self, request: CheckRequest) -> tuple[Decision, Program]:
        programs = self._programs
        found = programs.find(request)
        now_ms = time.time_ns() // 1_000_000
        asked = engine_request(request)
        decision = self._decider.decide(found.program, found.keys, programs.revocations, asked, now_ms)
        return decision, found.program
