"""What AuthorizationPolicies may say of ports whose connections carry no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from peltast.policies.problems import Problem

Problems = Callable[..., list[Problem]]

MESH = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db, namespace: shop}
spec: {address: 127.0.0.2, labels: {app: db}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 127.0.0.3, labels: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  selector: {app: db}
  ports: [{port: 15432, targetPort: 5432, appProtocol: tcp}, {port: 8443, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 8443, targetPort: 8080}]}
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: ask, namespace: shop}
spec: {entrypoint: data.p.allow, module: "package p\\nallow := true"}
"""


def policy(action: str, *rules: dict[str, Any], app: str = "db", namespace: str = "shop") -> str:
    spec: dict[str, Any] = {"action": action, "rules": list(rules)}
    if action == "CUSTOM":
        spec["provider"] = {"name": "shop/ask"}
    if app:
        spec["selector"] = {"matchLabels": {"app": app}}
    metadata = {"name": "p", "namespace": namespace}
    kind = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
    return yaml.safe_dump({**kind, "metadata": metadata, "spec": spec})


def to(**operation: list[str]) -> dict[str, Any]:
    return {"operation": operation}


def source(**fields: list[str]) -> dict[str, Any]:
    return {"source": fields}


GET, PEER, TOKEN = to(methods=["GET"]), source(principals=["*/sa/web"]), source(requestPrincipals=["*"])
HEADER = {"key": "request.headers[x-a]", "values": ["*"]}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(policy("ALLOW", {"to": [GET]}), id="ALLOW about requests matches no connection"),
        pytest.param(policy("ALLOW", {"from": [TOKEN], "when": [HEADER]}), id="ALLOW about tokens, too"),
        pytest.param(policy("DENY", {"from": [PEER]}), id="DENY by identity"),
        pytest.param(policy("DENY", {}), id="DENY of everything"),
        pytest.param(policy("DENY", {"from": [PEER], "to": [to(ports=["5432"])]}), id="DENY by identity and port"),
        pytest.param(policy("DENY", {"to": [to(methods=["GET"], ports=["8080"])]}), id="DENY on the HTTP port"),
        pytest.param(policy("DENY", {"to": [to(methods=["GET"], notPorts=["5432"])]}), id="DENY on all other ports"),
        pytest.param(
            policy("DENY", {"to": [GET], "when": [{"key": "destination.port", "values": ["8080"]}]}),
            id="DENY with the port among the conditions",
        ),
        pytest.param(
            policy("DENY", {"to": [to(paths=["/a"], ports=["8080"]), to(ports=["5432"])]}),
            id="DENY with alternatives that can each be told",
        ),
        pytest.param(policy("DENY", {"to": [GET]}, app="web"), id="DENY of another workload"),
        pytest.param(policy("DENY", {"to": [GET]}, app="", namespace="office"), id="DENY in another namespace"),
        pytest.param(policy("CUSTOM", {"to": [to(notPorts=["5432"])]}), id="CUSTOM on all other ports"),
    ],
)
def test_what_can_be_told_or_safely_left_out_is_taken(problems_of: Problems, text: str) -> None:
    assert problems_of(mesh_yaml=MESH, p_yaml=text) == []


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        pytest.param(
            policy("DENY", {"to": [to(**{name: ["/x"]})]}),
            [f"spec.rules[0].to[0].operation.{name}"],
            id=f"DENY, {name}",
        )
        for name in ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
    ]
    + [
        pytest.param(
            policy("DENY", {"from": [source(**{name: ["*"]})]}),
            [f"spec.rules[0].from[0].source.{name}"],
            id=f"DENY, {name}",
        )
        for name in ("requestPrincipals", "notRequestPrincipals")
    ]
    + [
        pytest.param(
            policy("DENY", {"when": [{"key": key, "notValues": ["x"]}]}),
            ["spec.rules[0].when[0].key"],
            id=f"DENY, {key}",
        )
        for key in ("request.headers[x-a]", "request.auth.claims[groups]", "request.auth.audiences")
    ]
    + [
        pytest.param(
            policy(
                "DENY", {"from": [PEER]}, {"from": [PEER, TOKEN], "to": [to(ports=["5432"]), GET], "when": [HEADER]}
            ),
            [
                "spec.rules[1].from[1].source.requestPrincipals",
                "spec.rules[1].to[1].operation.methods",
                "spec.rules[1].when[0].key",
            ],
            id="DENY, all of it at once",
        ),
        pytest.param(
            policy("DENY", {"to": [to(methods=["GET"], ports=["8080", "5432"])]}),
            ["spec.rules[0].to[0].operation.methods"],
            id="DENY, both ports",
        ),
        pytest.param(
            policy("DENY", {"to": [GET]}, app="", namespace="istio-system"),
            ["spec.rules[0].to[0].operation.methods"],
            id="DENY, for the whole mesh",
        ),
        pytest.param(policy("CUSTOM", {}), ["spec.rules[0]"], id="CUSTOM, everything"),
        pytest.param(
            policy("CUSTOM", {"to": [to(ports=["8080"])]}, {"from": [PEER]}),
            ["spec.rules[1]"],
            id="CUSTOM, by identity",
        ),
    ],
)
def test_what_can_be_neither_told_nor_left_out_is_refused(problems_of: Problems, text: str, fields: list[str]) -> None:
    problems = problems_of(mesh_yaml=MESH, p_yaml=text)
    assert [problem.field for problem in problems] == fields
    for problem in problems:
        assert problem.file == "p.yaml"
        assert problem.line > 0
        assert "port 5432 of shop/db" in problem.given
        assert "notPorts" in problem.allowed


def test_the_line_is_that_of_the_field(problems_of: Problems) -> None:
    rules = "rules:\n    - from: [{source: {namespaces: [a]}}]\n      to:\n        - operation: {methods: [GET]}\n"
    head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n"
    text = f"{head}spec:\n  action: DENY\n  {rules}"
    [problem] = problems_of(mesh_yaml=MESH, p_yaml=text)
    assert "methods" in text.splitlines()[problem.line - 1]


def test_a_field_that_is_a_problem_for_many_workloads_is_told_once(problems_of: Problems) -> None:
    second = MESH.split("---")[0].replace("name: db", "name: db-2").replace("127.0.0.2", "127.0.0.4")
    assert len(problems_of(mesh_yaml=f"{MESH}---{second}", p_yaml=policy("DENY", {"to": [GET]}))) == 1


def limits(*rules: dict[str, Any]) -> str:
    limit = {"rates": [{"requests": 1, "per": "1s"}], **({"rules": list(rules)} if rules else {})}
    head = {"apiVersion": "peltast.dev/v1", "kind": "RateLimitPolicy", "metadata": {"name": "p", "namespace": "shop"}}
    return yaml.safe_dump({**head, "spec": {"selector": {"matchLabels": {"app": "db"}}, "limits": [limit]}})


@pytest.mark.parametrize(
    ("text", "field"),
    [
        pytest.param(limits(), "spec.limits[0]", id="a limit of everything"),
        pytest.param(limits({"to": [GET]}), "spec.limits[0].rules[0]", id="a limit of some requests"),
        pytest.param(limits({"to": [to(ports=["8080"])]}, {"from": [PEER]}), "spec.limits[0].rules[1]", id="one rule"),
        pytest.param(limits({"to": [to(ports=["8080"])]}), None, id="a limit of another port"),
    ],
)
def test_a_limit_counts_no_connections(problems_of: Problems, text: str, field: str | None) -> None:
    problems = problems_of(mesh_yaml=MESH, policy_yaml=text)
    assert [problem.field for problem in problems] == ([field] if field else [])
    for problem in problems:
        assert "port 5432 of shop/db" in problem.given
        assert "HTTP requests are counted" in problem.allowed
