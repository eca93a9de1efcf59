"""AuditPolicy: what is told of decisions, and how surely they are recorded."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from pydantic import Field

from peltast.policies.kinds.duration import DurationText, duration
from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.kinds.selection import WorkloadSelector
from peltast.policies.sources.documents import FieldPath

__all__ = ["AuditPolicySpec", "Durability", "OnSpoolFull"]


DEFAULT_SYNC_INTERVAL = "1s"


class Denials(Model):
    """What whoever is denied is told."""

    policy_name: bool = False


class OnSpoolFull(StrEnum):
    """What becomes of a request that would be allowed while its record has no room."""

    DENY = "deny"
    DROP = "drop"


class Durability(StrEnum):
    """What records survive before they are in the store."""

    PROCESS = "process"
    """The end of any process."""
    MACHINE = "machine"
    """The end of the machine too, but for the last `syncInterval`."""


class AuditPolicySpec(Spec):
    """The spec of an AuditPolicy."""

    selector: WorkloadSelector = WorkloadSelector()
    denials: Denials = Field(default=Denials())
    on_spool_full: OnSpoolFull | None = None
    durability: Durability | None = None
    sync_interval: DurationText | None = None

    @property
    def synced_every(self) -> timedelta | None:
        """How often records are brought to the disk; none where this does not say that they are."""
        if self.durability is not Durability.MACHINE:
            return None
        return duration(self.sync_interval or DEFAULT_SYNC_INTERVAL)

    def problems(self) -> list[tuple[FieldPath, str, str]]:
        """See :meth:`Spec.problems`."""
        if self.sync_interval is None or self.durability is Durability.MACHINE:
            return []
        allowed = "durability: machine is expected beside it, for nothing is synced otherwise"
        return [(("syncInterval",), f"{self.sync_interval!r} is given", allowed)]
