"""Who can call whom, against the plain evaluator of the differential tests, which shares no code with ours."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.generated import CALLERS, MESH, PORTS, Caller, PolicySet, policy_set, request

from peltast.audit.reports.reach import Reach, Target, Verdict, reaches
from peltast.authz.revision import Revision, compile_revision
from peltast.policies.snapshot import load

ASKED = 40


def targets(policies: PolicySet) -> dict[int, Target]:
    """The workload's ports, by the application's."""
    revision = policies.compile()
    [(name, workload)] = revision.snapshot.workloads.items()
    document = json.loads(revision.programs[name])
    return {port.target_port: Target(document, workload, port) for port in workload.ports}


@settings(max_examples=200)
@given(st.integers(0, 2**64))
def test_always_and_never_are_true_of_every_request(seed: int) -> None:
    choose = Random(seed)
    policies = policy_set(choose)
    at = targets(policies)
    for caller in CALLERS:
        verdict, why = at[caller.port].ask(caller.principal)
        assert why or verdict is Verdict.SOMETIMES
        outcomes = {policies.decide(request(choose, caller)).allowed for _ in range(ASKED)}
        if verdict is not Verdict.SOMETIMES:
            assert outcomes == {verdict is Verdict.ALWAYS}, (caller, verdict, why, policies.text)


def test_the_property_above_sees_every_verdict() -> None:
    found = set()
    for seed in range(60):
        policies = policy_set(Random(seed))
        found |= {targets(policies)[caller.port].ask(caller.principal)[0] for caller in CALLERS}
    assert found == set(Verdict)


AUTHORIZATION = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec: @SPEC@
"""
TOKENS = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {require: @REQUIRE@, jwtRules: [{issuer: "https://i", jwksUri: "https://i/keys"}]}
"""
CALLER = Caller("spiffe://cluster.local/ns/a/sa/x", "", None, 8080)


@pytest.mark.parametrize(
    ("spec", "verdict", "why"),
    [
        ("{}", "never", ["no_allow_rule"]),
        ("{rules: [{}]}", "always", ["allow_rule shop/p[0]"]),
        ("{rules: [{from: [{source: {namespaces: [a]}}]}]}", "always", ["allow_rule shop/p[0]"]),
        ("{rules: [{from: [{source: {namespaces: [b]}}]}]}", "never", ["no_allow_rule"]),
        ("{rules: [{from: [{source: {notNamespaces: [a]}}]}]}", "never", ["no_allow_rule"]),
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", "sometimes", ["ALLOW shop/p[0]: by request.method"]),
        ("{rules: [{to: [{operation: {ports: ['9090']}}]}]}", "never", ["no_allow_rule"]),
        (
            "{rules: [{from: [{source: {namespaces: [b]}}, {source: {ipBlocks: [10.0.0.1]}}]}]}",
            "sometimes",
            ["ALLOW shop/p[0]: by source.ip"],
        ),
        (
            "{rules: [{to: [{operation: {methods: [GET]}}]}, {from: [{source: {namespaces: [a]}}]}]}",
            "always",
            ["allow_rule shop/p[1]"],
        ),
        ("{action: DENY, rules: [{from: [{source: {namespaces: [a]}}]}]}", "never", ["deny_rule shop/p[0]"]),
        ("{action: DENY, rules: [{from: [{source: {namespaces: [b]}}]}]}", "always", ["no_allow_policy"]),
        (
            "{action: DENY, rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {paths: [/x]}}]}]}",
            "sometimes",
            ["DENY shop/p[0]: by request.path"],
        ),
        ("{action: AUDIT, rules: [{}]}", "always", ["no_allow_policy"]),
        ("{action: CUSTOM, provider: {name: flag}, rules: [{}]}", "sometimes", ["CUSTOM shop/p[0]"]),
        (
            "{action: CUSTOM, provider: {name: flag}, rules: [{to: [{operation: {ports: ['9090']}}]}]}",
            "always",
            ["no_allow_policy"],
        ),
        ("{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}", "never", ["no_allow_rule"]),
        ("{targetRefs: [{kind: Service, name: catalog}]}", "never", ["no_allow_rule"]),
    ],
)
def test_a_verdict_and_why(spec: str, verdict: str, why: list[str]) -> None:
    assert ask(AUTHORIZATION.replace("@SPEC@", spec)) == (verdict, tuple(why))


@pytest.mark.parametrize(
    ("require", "spec", "verdict", "why"),
    [
        ("false", "{rules: [{}]}", "sometimes", ["no token, or a valid one", "ALLOW shop/p[0]"]),
        ("true", "{rules: [{}]}", "sometimes", ["a valid token", "ALLOW shop/p[0]"]),
        ("true", "{}", "never", ["no_allow_rule"]),
        (
            "false",
            "{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
            "sometimes",
            ["no token, or a valid one", "ALLOW shop/p[0]: by request.auth.principal"],
        ),
    ],
)
def test_tokens_leave_it_open(require: str, spec: str, verdict: str, why: list[str]) -> None:
    text = AUTHORIZATION.replace("@SPEC@", spec) + TOKENS.replace("@REQUIRE@", require)
    assert ask(text) == (verdict, tuple(why))


def revision(text: str, mesh: str = MESH) -> Revision:
    return compile_revision(load({"mesh.yaml": mesh.encode(), "p.yaml": text.encode()}, "cluster.local", 1))


def ask(text: str) -> tuple[str, tuple[str, ...]]:
    made = revision(text)
    [(name, workload)] = made.snapshot.workloads.items()
    [port] = [port for port in workload.ports if port.target_port == CALLER.port]
    return Target(json.loads(made.programs[name]), workload, port).ask(CALLER.principal)


DRY_RUN = AUTHORIZATION.replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}")


def test_what_is_on_trial_decides_nothing() -> None:
    assert ask(DRY_RUN.replace("@SPEC@", "{}")) == ("always", ("no_allow_policy",))


@pytest.mark.parametrize(
    ("mode", "sources"),
    [
        ("STRICT", ["spiffe://cluster.local/ns/shop/sa/catalog"]),
        ("PERMISSIVE", [None, "spiffe://cluster.local/ns/shop/sa/catalog"]),
        ("DISABLE", [None]),
    ],
)
def test_who_calls_a_port_by_its_mtls(mode: str, sources: list[str | None]) -> None:
    text = f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: mesh, namespace: shop}}
spec: {{mtls: {{mode: {mode}}}}}
"""
    found = list(reaches(revision(text)))
    assert [(reach.source, reach.port.target_port) for reach in found] == [
        (source, port) for port in PORTS for source in sources
    ]


TCP = MESH.replace('"targetPort": 9090', '"targetPort": 9090, "appProtocol": "tcp"')


@pytest.mark.parametrize(
    ("text", "verdict", "why"),
    [
        ("{rules: [{from: [{source: {principals: ['*']}}]}]}", "always", ("allow_rule shop/p[0]",)),
        ("{rules: [{to: [{operation: {methods: [GET]}}]}]}", "never", ("no_allow_rule",)),
        (
            "{rules: [{from: [{source: {ipBlocks: [10.0.0.1], requestPrincipals: ['*']}},"
            " {source: {namespaces: [shop]}}]}]}",
            "never",
            ("no_allow_rule",),
        ),
        ("{rules: [{from: [{source: {ipBlocks: [10.0.0.1]}}]}]}", "sometimes", ("ALLOW shop/p[0]: by source.ip",)),
    ],
)
def test_connections_without_http(text: str, verdict: str, why: tuple[str, ...]) -> None:
    found = [reach for reach in reaches(revision(AUTHORIZATION.replace("@SPEC@", text), TCP)) if is_tcp(reach)]
    assert [(reach.verdict, reach.why) for reach in found] == [(verdict, why)]


def test_a_connection_has_no_token_where_one_is_required() -> None:
    text = AUTHORIZATION.replace("@SPEC@", "{rules: [{}]}") + TOKENS.replace("@REQUIRE@", "true")
    [found] = [reach for reach in reaches(revision(text, TCP)) if is_tcp(reach)]
    assert (found.verdict, found.why) == (Verdict.NEVER, ("token_required",))


def is_tcp(reach: Reach) -> bool:
    return reach.port.app_protocol == "tcp"
