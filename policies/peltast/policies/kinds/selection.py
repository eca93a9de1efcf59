"""Which workloads a policy applies to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field
from pydantic.alias_generators import to_camel

from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.sources.documents import FieldPath

__all__ = ["TargetReference", "TargetedSpec", "WorkloadSelector"]

_MAX_TARGETS = 16
_TARGETS = (("Service", ""), ("Service", "core"))
_NO_WAYPOINTS = "gateways and waypoints are not there yet"


class WorkloadSelector(Model):
    """Workloads that have all these labels; ``*`` and ``?`` mean nothing here, as in Istio."""

    match_labels: dict[str, str] = {}

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload with `labels` is selected."""
        return self.match_labels.items() <= labels.items()


class TargetReference(Model):
    """What a policy is for, instead of a selector: a Service in the policy's namespace."""

    group: str = ""
    kind: str
    name: str = Field(min_length=1)
    namespace: str = ""


class TargetedSpec(Spec):
    """The spec of a policy for workloads, or for the services before them."""

    selector: WorkloadSelector = WorkloadSelector()
    target_ref: TargetReference | None = None
    target_refs: list[TargetReference] = []

    @property
    def targets(self) -> list[tuple[FieldPath, TargetReference]]:
        """The services that it is for, each with its place; without any, it is for workloads as such."""
        single: list[tuple[FieldPath, TargetReference]] = [(("targetRef",), self.target_ref)] if self.target_ref else []
        return [*single, *((("targetRefs", index), each) for index, each in enumerate(self.target_refs))]

    def target_problems(self) -> Iterator[tuple[FieldPath, str, str]]:
        """What is wrong with whom it is for; see :meth:`Spec.problems`."""
        given = self.model_fields_set & {"selector", "target_ref", "target_refs"}
        if len(given) > 1:
            yield ((), f"{' and '.join(sorted(map(to_camel, given)))} are given", "a policy has one of them")
        if len(self.target_refs) > _MAX_TARGETS:
            yield (("targetRefs",), f"{len(self.target_refs)} are given", f"at most {_MAX_TARGETS} are allowed")
        if self.target_refs == [] and "target_refs" in given:
            yield (("targetRefs",), "an empty list is given", "leave it out where it does not restrict")
        for at, target in self.targets:
            if (target.kind, target.group) not in _TARGETS:
                what = f"{target.group}/{target.kind}" if target.group else target.kind
                allowed = f'a Service (of the group "") is expected: {_NO_WAYPOINTS}'
                yield ((*at, "kind"), f"{what} is given", allowed)
