"""What Istio's users may bring along and Peltast does not do yet: refused by name, with the reason."""

from __future__ import annotations

import pytest

from peltast.policies.problems import InvalidConfiguration
from peltast.policies.snapshot import load


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidConfiguration) as refused:
        load({"policy.yaml": text.encode()}, "cluster.local", 1)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize("kind", ["VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "EnvoyFilter"])
def test_a_kind_of_istio_is_refused_with_a_reason(kind: str) -> None:
    text = f"apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{}}\n"
    (problem,) = problems(text)
    assert problem.startswith(f"policy.yaml:2: kind: {kind} is given; {kind} is refused: it ")
