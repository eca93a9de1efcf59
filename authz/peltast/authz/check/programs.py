"""The programs of one revision, loaded, and which of them a question is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from peltast.authz._engine import KeySets, Program, Request, Revocations, document_hash
from peltast.authz.protos.check_pb2 import CheckRevision
from peltast.authz.revocations import NO_REVOCATIONS

__all__ = ["Programs", "UnknownDestination", "WorkloadProgram"]


class UnknownDestination(LookupError):
    """No workload has the destination's principal and address."""


@dataclass(frozen=True)
class WorkloadProgram:
    """What requests to one workload are decided by."""

    program: Program
    keys: KeySets

    @cached_property
    def referenced(self) -> tuple[str, ...]:
        """Every attribute that a decision may rest on."""
        return tuple(self.program.attributes)


@dataclass(frozen=True)
class Programs:
    """Those of one revision, by the workloads' principals and addresses."""

    by_principal: Mapping[str, Mapping[str, WorkloadProgram]]
    revocations: Revocations

    @classmethod
    def none(cls) -> Self:
        """Those of no workload."""
        return cls({}, Revocations.load(NO_REVOCATIONS))

    @classmethod
    def load(cls, revision: CheckRevision, last: Programs) -> Self:
        """Loads `revision`, whose Rego must have been admitted. What is as in `last` is taken over from there.

        Raises:
            ValueError: it is not what the compiler makes.
        """
        # Loading Rego takes its time, and new keys are no new programs.
        known = {each.program.hash: each.program for each in last.all}
        by_principal: dict[str, dict[str, WorkloadProgram]] = {}
        for workload in revision.workloads:
            program = known.get(document_hash(workload.program)) or Program.load(workload.program)
            loaded = WorkloadProgram(program, KeySets.load(workload.keys))
            by_principal.setdefault(workload.principal, {})[workload.address] = loaded
        return cls(by_principal, Revocations.load(revision.revocations))

    @property
    def all(self) -> list[WorkloadProgram]:
        """Each of them."""
        return [each for by_address in self.by_principal.values() for each in by_address.values()]

    @property
    def have_check_tier(self) -> bool:
        """Whether some policy is of the check tier."""
        return any(each.program.has_check_tier for each in self.all)

    def find(self, asked: Request) -> WorkloadProgram:
        """The destination's program. Workloads with one principal are told apart by their addresses.

        Raises:
            UnknownDestination: see there.
        """
        principal, address = asked.destination_principal, asked.destination_address
        by_address = self.by_principal.get(principal, {})
        if address in by_address:
            return by_address[address]
        if len(by_address) == 1:
            return next(iter(by_address.values()))
        raise UnknownDestination(f"no workload is {principal or 'unnamed'} at {address or 'no address'}")
