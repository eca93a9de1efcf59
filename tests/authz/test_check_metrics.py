"""What processes of the check service count: told whole, added up, bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from peltast.authz.check.counts import BOUNDS_SECONDS, MOST_REFUSALS, Counts
from peltast.authz.check.metrics import CheckMetrics

decided = st.tuples(st.sampled_from(["allow", "deny"]), st.sampled_from(["engine", "cache"]), st.floats(0, 10))
refused = st.tuples(st.text(max_size=5), st.text(max_size=300))


def counts(decisions: list[tuple[str, str, float]], refusals: list[tuple[str, str]]) -> Counts:
    made = Counts()
    for decision in decisions:
        made.decided(*decision)
    for refusal in refusals:
        made.refuse(*refusal)
    return made


@given(st.lists(decided), st.lists(refused))
def test_counts_arrive_as_they_were_told(
    decisions: list[tuple[str, str, float]], refusals: list[tuple[str, str]]
) -> None:
    told = counts(decisions, refusals)
    assert Counts.load(told.dump()) == told
    assert sum(told.durations) == len(decisions)
    assert told.refused.total() == len(refusals)


@given(st.lists(st.lists(decided)))
def test_the_sum_of_processes_is_what_one_would_have_counted(processes: list[list[tuple[str, str, float]]]) -> None:
    metrics = CheckMetrics()
    for pid, decisions in enumerate(processes):
        metrics.started(pid)
        metrics.add(pid, counts(decisions, []))
        metrics.ended(pid)
    every = [decision for decisions in processes for decision in decisions]
    registry = CollectorRegistry()
    registry.register(metrics)
    values = {
        (sample.name, *sample.labels.values()): sample.value for each in registry.collect() for sample in each.samples
    }
    for effect, source, _ in every:
        number = sum((effect, source) == other[:2] for other in every)
        assert values["peltast_check_decisions_total", effect, source] == number
    for bound in BOUNDS_SECONDS:
        number = sum(seconds <= bound for *_, seconds in every)
        assert values["peltast_check_duration_seconds_bucket", str(bound)] == number
    assert values["peltast_check_duration_seconds_count",] == len(every)
    assert b"peltast_check_workers 0.0" in generate_latest(registry)


def test_who_asks_nonsense_in_many_ways_is_told_of_in_few_words() -> None:
    told = counts([], [(f"spiffe://td/{number}", "x" * 10_000) for number in range(1000)])
    assert len(told.refused) == MOST_REFUSALS + 1
    assert told.refused.total() == 1000
    assert len(told.dump()) < 20_000
