"""What is recorded of a workload: of several AuditPolicies the most specific says, field by field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pydantic.alias_generators import to_camel

from peltast.policies.kinds.audit import AuditPolicySpec, Record, Treatment
from peltast.policies.kinds.request_authentication import RequestAuthenticationSpec
from peltast.policies.kinds.resource import Resource
from peltast.policies.problems import Problem

if TYPE_CHECKING:
    from peltast.policies.snapshot import Snapshot, Workload

__all__ = ["AuditPolicies", "token_header_problems"]

AuditPolicy: TypeAlias = Resource[AuditPolicySpec]


@dataclass(frozen=True)
class AuditPolicies:
    """Every AuditPolicy, and the namespace whose are for the whole mesh."""

    policies: Sequence[AuditPolicy]
    root_namespace: str

    def record(self, namespace: str, labels: Mapping[str, str]) -> Record:
        """What is recorded of a workload in `namespace` with `labels`."""
        record = Record()
        for policy in sorted(self.applying_to(namespace, labels), key=self._specificity):
            record = policy.spec.record.over(record)
        return record

    def applying_to(self, namespace: str, labels: Mapping[str, str]) -> Iterator[AuditPolicy]:
        """Those for a workload in `namespace` with `labels`."""
        for policy in self.policies:
            if policy.namespace in (self.root_namespace, namespace) and policy.spec.selector.selects(labels):
                yield policy

    def problems(self, workloads: Iterable[Workload]) -> Iterator[Problem]:
        """Istio takes the oldest of several at one level. Files have no age: a second one is a problem, told once."""
        found: dict[tuple[str, str], Problem] = {}
        for workload in workloads:
            first: dict[tuple[bool, bool, str], AuditPolicy] = {}
            for policy in self.applying_to(workload.namespace, workload.labels):
                for name in policy.spec.record.given:
                    other = first.setdefault((*self._specificity(policy), name), policy)
                    if other is not policy:
                        given = f"{other.full_name} says it of {workload.full_name}, too"
                        allowed = "one policy of the mesh, one of a namespace and one that selects by labels may say it"
                        problem = policy.problem(("spec", "record", to_camel(name)), given, allowed)
                        found.setdefault((policy.full_name, name), problem)
        yield from found.values()

    def _specificity(self, policy: AuditPolicy) -> tuple[bool, bool]:
        return bool(policy.spec.selector.match_labels), policy.namespace != self.root_namespace


def token_header_problems(snapshot: Snapshot) -> Iterator[Problem]:
    """Headers that are kept in records although tokens are taken from them, each told once."""
    found: dict[tuple[str, int], Problem] = {}
    for workload in snapshot.workloads.values():
        rules = [
            rule
            for resource in snapshot.applying_to(workload, RequestAuthenticationSpec)
            for rule in resource.spec.jwt_rules
        ]
        tokens = {header.name.lower() for rule in rules for header in rule.from_headers}
        for policy in snapshot.applying_to(workload, AuditPolicySpec):
            for index, header in enumerate(policy.spec.record.headers or []):
                if header.as_ is Treatment.KEEP and header.name.lower() in tokens:
                    given = f"keep is given for {header.name}, where {workload.full_name} takes tokens"
                    allowed = "redact or hash is expected: whoever reads it in a record could act as the caller"
                    at = ("spec", "record", "headers", index, "as")
                    found.setdefault((policy.full_name, index), policy.problem(at, given, allowed))
    yield from found.values()
