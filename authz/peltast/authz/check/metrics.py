"""The check service's metrics, for Prometheus: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from peltast.authz.check.counts import BOUNDS_SECONDS, Counts

__all__ = ["CheckMetrics"]


class CheckMetrics(Collector):
    """What all processes of the check service counted, those that have ended among them."""

    def __init__(self) -> None:
        self._total = Counts()
        self._waiting: dict[int, int] = {}
        self._started = 0

    def started(self, pid: int) -> None:
        """Process `pid` counts from now on."""
        self._started += 1
        self._waiting[pid] = 0

    def add(self, pid: int, counts: Counts) -> None:
        """Adds what process `pid` counted since it told last."""
        # Who was refused is on record; as a label it would have no bound.
        self._total += replace(counts, waiting=0, refused=type(counts.refused)({("", ""): counts.refused.total()}))
        self._waiting[pid] = counts.waiting

    def ended(self, pid: int) -> None:
        """Process `pid` is gone."""
        self._waiting.pop(pid, None)

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        total = self._total
        decisions = CounterMetricFamily(
            "peltast_check_decisions", "Questions that were decided.", labels=["effect", "source"]
        )
        for labels, number in total.decisions.items():
            decisions.add_metric(labels, number)
        yield decisions
        yield self._durations(total)
        unanswered = CounterMetricFamily(
            "peltast_check_unanswered", "Questions decided without the policy that was asked.", labels=["reason"]
        )
        for reason, number in total.unanswered.items():
            unanswered.add_metric([reason], number)
        yield unanswered
        refused = total.refused.total()
        yield CounterMetricFamily("peltast_check_refused", "Questions that were refused.", value=refused)
        yield CounterMetricFamily(
            "peltast_check_evaluators_ended", "Evaluators that died or were killed.", value=total.evaluators_ended
        )
        yield CounterMetricFamily("peltast_check_workers_started", "Check workers that started.", value=self._started)
        yield GaugeMetricFamily("peltast_check_workers", "Check workers that run.", value=len(self._waiting))
        waiting = sum(self._waiting.values())
        yield GaugeMetricFamily("peltast_check_waiting", "Questions that wait for an evaluator.", value=waiting)

    def _durations(self, total: Counts) -> HistogramMetricFamily:
        bounds = [*map(str, BOUNDS_SECONDS), "+Inf"]
        family = HistogramMetricFamily("peltast_check_duration_seconds", "From question to answer.")
        family.add_metric([], list(zip(bounds, accumulate(total.durations), strict=True)), total.seconds)
        return family
