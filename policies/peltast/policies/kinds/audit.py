"""AuditPolicy: what is told of decisions, beside the record."""

from __future__ import annotations

from pydantic import Field

from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.kinds.selection import WorkloadSelector

__all__ = ["AuditPolicySpec"]


class Denials(Model):
    """What whoever is denied is told."""

    policy_name: bool = False


class AuditPolicySpec(Spec):
    """The spec of an AuditPolicy."""

    selector: WorkloadSelector = WorkloadSelector()
    denials: Denials = Field(default=Denials())
