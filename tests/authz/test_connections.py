"""Connections that carry no HTTP, decided by any policies: no DENY is widened or narrowed, no ALLOW is widened."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import assume, event, given
from hypothesis import strategies as st

from peltast.authz._engine import Decider, Decision, KeySets, Program, Request, Revocations
from peltast.authz.revision import compile_revision
from peltast.authz.revocations import NO_REVOCATIONS
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.snapshot import load

MESH = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db, namespace: shop}
spec: {address: 127.0.0.2, labels: {app: db}}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  selector: {app: db}
  ports: [{port: 15432, targetPort: 5432, appProtocol: tcp}, {port: 8443, targetPort: 8080}]
"""
TCP_PORT = "5432"
OF_REQUESTS = {"requestPrincipals", "methods", "notMethods", "request.headers[x-a]"}
PRINCIPALS = [f"cluster.local/ns/shop/sa/{name}" for name in ("web", "batch")]

Rule = dict[str, Any]


def part(**fields: st.SearchStrategy[list[str]]) -> st.SearchStrategy[dict[str, list[str]]]:
    return st.fixed_dictionaries({}, optional=fields).filter(bool)


ports = st.lists(st.sampled_from([TCP_PORT, "8080"]), min_size=1, unique=True)
sources = part(principals=st.lists(st.sampled_from(PRINCIPALS), min_size=1), requestPrincipals=st.just(["*"]))
operations = part(ports=ports, notPorts=ports, methods=st.just(["GET"]), notMethods=st.just(["GET"]))
conditions = st.builds(
    dict, key=st.sampled_from(["destination.port", "request.headers[x-a]"]), values=st.just(["8080"])
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(sources.map(lambda source: {"source": source}), min_size=1, max_size=2),
        "to": st.lists(operations.map(lambda operation: {"operation": operation}), min_size=1, max_size=2),
        "when": st.lists(conditions, min_size=1, max_size=2),
    },
)


def decide(action: str, given_rules: list[Rule], principal: str) -> Decision:
    """The decision about a connection to the TCP port.

    Raises:
        InvalidConfiguration: the policy is refused.
    """
    policy = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
    named = {**policy, "metadata": {"name": "p", "namespace": "shop"}, "spec": {"action": action, "rules": given_rules}}
    files = {"mesh.yaml": MESH.encode(), "p.yaml": yaml.safe_dump(named).encode()}
    revision = compile_revision(load(files, "cluster.local", 1))
    program, keys = Program.load(revision.programs["shop/db"]), KeySets.load(revision.keys["shop/db"])
    request = Request(source_principal=f"spiffe://{principal}", destination_port=15432)
    return Decider().decide(program, keys, Revocations.load(NO_REVOCATIONS), request, 0)


def matches(rule: Rule, principal: str, *, of_requests: bool) -> bool:
    """Whether `rule` matches a connection to the TCP port, if all it asks of requests were `of_requests`."""

    def holds(name: str, values: list[str]) -> bool:
        match name:
            case "principals":
                return principal in values
            case "ports" | "destination.port":
                return TCP_PORT in values
            case "notPorts":
                return TCP_PORT not in values
        assert name in OF_REQUESTS
        return of_requests

    def some(alternatives: list[dict[str, list[str]]]) -> bool:
        return any(all(holds(*field) for field in each.items()) for each in alternatives)

    return (
        ("from" not in rule or some([each["source"] for each in rule["from"]]))
        and ("to" not in rule or some([each["operation"] for each in rule["to"]]))
        and all(holds(each["key"], each["values"]) for each in rule.get("when", []))
    )


def asks_of_requests(rule: Rule) -> bool:
    return any(name in yaml.safe_dump(rule) for name in OF_REQUESTS)


@given(st.lists(rules, min_size=1, max_size=3), st.sampled_from(PRINCIPALS))
def test_a_deny_that_is_taken_does_not_rest_on_what_a_connection_lacks(given_rules: list[Rule], principal: str) -> None:
    try:
        denied = not decide("DENY", given_rules, principal).allowed
    except InvalidConfiguration:
        event("refused")
        assert any(asks_of_requests(rule) for rule in given_rules)
        assume(False)
    for of_requests in (True, False):
        assert denied == any(matches(rule, principal, of_requests=of_requests) for rule in given_rules)


@given(st.lists(rules, min_size=1, max_size=3), st.sampled_from(PRINCIPALS))
def test_an_allow_rule_that_asks_of_requests_allows_no_connection(given_rules: list[Rule], principal: str) -> None:
    told = [rule for rule in given_rules if not asks_of_requests(rule)]
    allowed = any(matches(rule, principal, of_requests=True) for rule in told)
    assert decide("ALLOW", given_rules, principal).allowed == allowed
