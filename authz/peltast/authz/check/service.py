"""The check service's core: who asks about what, and the decision. No network here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from peltast.authz._engine import Decider, Decision, KeySets, Program, Revocations, document_hash
from peltast.authz.check.convert import check_response, engine_request
from peltast.authz.revision import Revision
from peltast.authz.revocations import NO_REVOCATIONS

__all__ = ["CheckService", "NotYours", "UnknownDestination"]


class NotYours(PermissionError):
    """A workload asked about requests to another."""


class UnknownDestination(LookupError):
    """No workload has the destination's principal and address."""


@dataclass(frozen=True)
class _Loaded:
    program: Program
    keys: KeySets


class CheckService:
    """Decides requests by the programs of one revision at a time."""

    def __init__(self) -> None:
        self._decider = Decider()
        self._revocations = Revocations.load(NO_REVOCATIONS)
        self._by_principal: Mapping[str, Mapping[str, _Loaded]] = {}

    def take(self, revision: Revision) -> None:
        """Decides by `revision` from now on. Its Rego must have been admitted."""
        # Loading Rego takes its time, and new keys are no new programs.
        known = {each.program.hash: each.program for loaded in self._by_principal.values() for each in loaded.values()}
        by_principal: dict[str, dict[str, _Loaded]] = {}
        for name, workload in revision.snapshot.workloads.items():
            document = revision.programs[name]
            program = known.get(document_hash(document)) or Program.load(document)
            loaded = _Loaded(program, KeySets.load(revision.keys[name]))
            by_principal.setdefault(workload.principal, {})[workload.address] = loaded
        self._by_principal = by_principal
        self._revocations = Revocations.load(revision.revocations)

    def check(self, request: CheckRequest, caller: str, *, sidecar: bool = False) -> CheckResponse:
        """Answers `request`, which `caller` (a SPIFFE ID) asks; `sidecar` where that is one of ours.

        Raises:
            NotYours: the caller is not the request's destination.
            UnknownDestination: see there.
            ValueError: the request is malformed.
        """
        destination = request.attributes.destination.principal
        if caller != destination:
            raise NotYours(f"{caller} asks about requests to {destination or 'nobody'}")
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
        loaded = self._find(request)
        now_ms = time.time_ns() // 1_000_000
        asked = engine_request(request)
        decision = self._decider.decide(loaded.program, loaded.keys, self._revocations, asked, now_ms)
        return decision, loaded.program

    def _find(self, request: CheckRequest) -> _Loaded:
        """The destination's program. Workloads with one principal are told apart by their addresses."""
        destination = request.attributes.destination
        by_address = self._by_principal.get(destination.principal, {})
        address = destination.address.socket_address.address
        if address in by_address:
            return by_address[address]
        if len(by_address) == 1:
            return next(iter(by_address.values()))
        raise UnknownDestination(f"no workload is {destination.principal or 'unnamed'} at {address or 'no address'}")
