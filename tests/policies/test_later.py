"""What Istio's users may bring along and Peltast does not do yet: refused by name, with the reason."""

from __future__ import annotations

import pytest

from peltast.policies.problems import InvalidConfiguration
from peltast.policies.snapshot import load

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: shadow
  annotations:
    istio.io/dry-run: "@VALUE@"
spec: {}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidConfiguration) as refused:
        load({"policy.yaml": text.encode()}, "cluster.local", 1)
    return [str(problem) for problem in refused.value.problems]


def test_a_policy_that_is_to_be_tried_only_is_not_enforced() -> None:
    assert problems(POLICY.replace("@VALUE@", "true")) == [
        "policy.yaml:7: metadata.annotations.istio.io/dry-run: not taken here; "
        "shadow decisions are not there yet; the policy would be enforced"
    ]


def test_a_policy_that_says_it_is_none_to_be_tried_is_taken() -> None:
    assert len(load({"policy.yaml": POLICY.replace("@VALUE@", "false").encode()}, "cluster.local", 1).resources) == 1


@pytest.mark.parametrize("kind", ["VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "EnvoyFilter"])
def test_a_kind_of_istio_is_refused_with_a_reason(kind: str) -> None:
    text = f"apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n"
    (problem,) = problems(text)
    assert problem.startswith(f"policy.yaml:2: kind: {kind} is given; {kind} is refused: it ")
