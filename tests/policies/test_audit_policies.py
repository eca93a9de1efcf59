"""AuditPolicy: of several, which says what is recorded of a workload, and what cannot be taken together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peltast.policies.problems import Problem
from peltast.policies.snapshot import load

Problems = Callable[..., list[Problem]]

WORKLOADS = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: api, namespace: shop}
spec: {address: 127.0.0.1, labels: {app: api, tier: back}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 127.0.0.2, labels: {app: web}}
"""
API, BACK = "selector: {matchLabels: {app: api}}, ", "selector: {matchLabels: {tier: back}}, "

TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {selector: {matchLabels: {app: api}}, jwtRules: [{issuer: a, jwks: '{"keys": []}', fromHeaders: [{name: X-Jwt}]}]}
"""


def policy(name: str, record: str, namespace: str = "shop", selector: str = "") -> str:
    head = f"apiVersion: peltast.dev/v1\nkind: AuditPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
    return f"{head}spec: {{{selector}record: {{{record}}}}}\n"


def queries(*policies: str) -> dict[str, Any]:
    """How the query of each workload's requests is recorded; nothing where it is left open."""
    files = {"mesh.yaml": WORKLOADS.encode(), "policies.yaml": "---\n".join(policies).encode()}
    workloads = load(files, "cluster.local", 1).workloads.values()
    return {each.name: each.record.query.value for each in workloads if each.record.query}


MESH = policy("mesh", "query: redact", "istio-system")
NAMESPACE = policy("namespace", "query: hash")
LABELS_OF_MESH = policy("labels", "query: redact", "istio-system", API)
LABELS = policy("labels", "query: keep", selector=API)


@pytest.mark.parametrize(
    ("policies", "api", "web"),
    [
        pytest.param([], None, None, id="nothing is said"),
        pytest.param([MESH], "redact", "redact", id="mesh"),
        pytest.param([MESH, NAMESPACE], "hash", "hash", id="namespace over mesh"),
        pytest.param([MESH, LABELS_OF_MESH, NAMESPACE], "redact", "hash", id="labels over namespace"),
        pytest.param([LABELS, LABELS_OF_MESH, NAMESPACE, MESH], "keep", "hash", id="own over root"),
        pytest.param([policy("other", "query: hash", "front")], None, None, id="another namespace's"),
        pytest.param([MESH, policy("open", "allowed: full")], "redact", "redact", id="what is left open is the mesh's"),
    ],
)  # fmt: skip
def test_the_most_specific_that_says_it_holds(policies: list[str], api: str | None, web: str | None) -> None:
    given = {"api": api, "web": web}
    assert queries(*policies) == {name: query for name, query in given.items() if query}


def test_two_of_one_level_may_not_say_the_same(problems_of: Problems) -> None:
    text = "---\n".join(
        [WORKLOADS, policy("a", "query: redact", selector=API), policy("b", "query: keep", selector=BACK)]
    )
    (problem,) = problems_of(a_yaml=text)
    assert (problem.field, problem.given) == ("spec.record.query", "shop/a says it of shop/api, too")
    others = [policy("a", "query: redact", selector=API), policy("b", "allowed: summary", selector=BACK)]
    assert queries(*others) == {"api": "redact"}, "they may say other things"


def test_a_header_that_tokens_are_taken_from_is_not_kept(problems_of: Problems) -> None:
    def problems(how: str, selector: str = "") -> list[Problem]:
        chosen = policy("a", f"headers: [{{name: x-jwt, as: {how}}}]", selector=selector)
        return problems_of(a_yaml=f"{WORKLOADS}---\n{TOKENS}---\n{chosen}")

    (problem,) = problems("keep")
    assert problem.field == "spec.record.headers[0].as"
    assert problem.given == "keep is given for x-jwt, where shop/api takes tokens"
    assert problems("redact") == problems("hash") == []
    assert problems("keep", "selector: {matchLabels: {app: web}}, ") == [], "another workload's header"
