"""The engine against the plain evaluator of `support.reference`; tests/e2e/test_differential.py asks Envoy too."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.generated import CALLERS, PATHS, PolicySet, policy_set, request
from support.mounts import PythonMount
from support.reference import normalized

from peltast.authz._engine import normalize_path


@settings(max_examples=max(200, settings.default.max_examples), suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
def test_the_engine_decides_as_the_reference_does(choose: Random) -> None:
    given_set = policy_set(choose)
    mount = PythonMount(given_set)
    asked = [request(choose, choose.choice(CALLERS)) for _ in range(8)]
    for each in [*asked, *asked]:  # the second time from memory
        assert mount.decide(each) == given_set.decide(each), (given_set.text, each)


def test_the_reference_normalizes_paths_as_the_engine_does() -> None:
    program = PythonMount(PolicySet(0, ())).program
    for path in PATHS:
        assert normalize_path(program, path.encode()).decode().partition("?")[0] == normalized(path), path
