"""Which workloads a policy applies to."""

from __future__ import annotations

from collections.abc import Mapping

from peltast.policies.kinds.resource import Model

__all__ = ["ROOT_NAMESPACE", "WorkloadSelector", "applies"]

ROOT_NAMESPACE = "istio-system"
"""Policies of this namespace apply everywhere, as by Istio's default."""


class WorkloadSelector(Model):
    """Workloads that have all these labels; ``*`` and ``?`` mean nothing here, as in Istio."""

    match_labels: dict[str, str] = {}

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload with `labels` is selected."""
        return self.match_labels.items() <= labels.items()


def applies(namespace: str, selector: WorkloadSelector, workload_namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether a policy in `namespace` with `selector` is for a workload."""
    return namespace in (ROOT_NAMESPACE, workload_namespace) and selector.selects(labels)
