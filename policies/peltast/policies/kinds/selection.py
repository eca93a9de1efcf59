"""Which workloads a policy applies to."""

from __future__ import annotations

from collections.abc import Mapping

from peltast.policies.kinds.resource import Model

__all__ = ["WorkloadSelector"]


class WorkloadSelector(Model):
    """Workloads that have all these labels; ``*`` and ``?`` mean nothing here, as in Istio."""

    match_labels: dict[str, str] = {}

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether a workload with `labels` is selected."""
        return self.match_labels.items() <= labels.items()
