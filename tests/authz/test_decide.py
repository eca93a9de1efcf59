"""AuthorizationPolicy from YAML to decisions, through the real compiler and engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peltast.authz._engine import Program

WEB = "spiffe://cluster.local/ns/front/sa/web"
OTHER = "spiffe://cluster.local/ns/dark/sa/other"

Mesh = Callable[..., Any]
Policy = Callable[..., str]


def allow(**rule: Any) -> dict[str, Any]:
    return {"action": "ALLOW", "rules": [rule]}


def deny(**rule: Any) -> dict[str, Any]:
    return {"action": "DENY", "rules": [rule]}


def source(**fields: list[str]) -> dict[str, Any]:
    return {"from": [{"source": fields}]}


def operation(**fields: list[str]) -> dict[str, Any]:
    return {"to": [{"operation": fields}]}


def when(key: str, *values: str, unless: tuple[str, ...] = ()) -> dict[str, Any]:
    condition: dict[str, Any] = {"key": key}
    if values:
        condition["values"] = list(values)
    if unless:
        condition["notValues"] = list(unless)
    return {"when": [condition]}


REGO = """
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: ext, namespace: shop}
spec:
  entrypoint: data.ext.allow
  module: |
    package ext
    default allow := false
    allow if input.attributes.request.http.headers["x-ext"] == "yes"
"""


# Order ----------------------------------------------------------------------------------------------------------------


def test_without_policies_everything_is_allowed(mesh: Mesh) -> None:
    decision = mesh().decide()
    assert (decision.allowed, decision.status, decision.reason) == (True, 200, "no_allow_policy")
    assert (decision.policy, decision.rule) == (None, None)


def test_an_allow_policy_without_rules_denies_everything(mesh: Mesh, policy: Policy) -> None:
    decision = mesh(policy({"action": "ALLOW"})).decide()
    assert (decision.allowed, decision.status, decision.reason) == (False, 403, "no_allow_rule")


def test_the_spec_may_be_empty_and_then_denies_everything(mesh: Mesh, policy: Policy) -> None:
    assert not mesh(policy({})).decide().allowed


def test_a_rule_that_says_nothing_matches_everything(mesh: Mesh, policy: Policy) -> None:
    decision = mesh(policy({"rules": [{}]})).decide()
    assert (decision.allowed, decision.reason, decision.policy, decision.rule) == (True, "allow_rule", "shop/p", 0)


def test_a_deny_policy_alone_lets_the_rest_pass(mesh: Mesh, policy: Policy) -> None:
    made = mesh(policy(deny(**operation(methods=["DELETE"]))))
    denied, allowed = made.decide(method="DELETE"), made.decide(method="GET")
    assert (denied.allowed, denied.status, denied.reason, denied.policy) == (False, 403, "deny_rule", "shop/p")
    assert (allowed.allowed, allowed.reason) == (True, "no_allow_policy")


def test_deny_is_asked_before_allow_whatever_their_names(mesh: Mesh, policy: Policy) -> None:
    decision = mesh(policy({"rules": [{}]}, name="a"), policy({"action": "DENY", "rules": [{}]}, name="z")).decide()
    assert (decision.reason, decision.policy) == ("deny_rule", "shop/z")


def custom(**rule: Any) -> dict[str, Any]:
    return {"action": "CUSTOM", "provider": {"name": "ext"}, "rules": [rule]}


@pytest.mark.parametrize(
    ("x_ext", "method", "reason", "decider"),
    [
        pytest.param("no", "GET", "rego_denied", "shop/custom", id="CUSTOM denies before ALLOW is asked"),
        pytest.param("no", "DELETE", "rego_denied", "shop/custom", id="CUSTOM denies before DENY is asked"),
        pytest.param("yes", "DELETE", "deny_rule", "shop/deny", id="what CUSTOM allows DENY may deny"),
        pytest.param("yes", "GET", "allow_rule", "shop/allow", id="what CUSTOM allows ALLOW must allow"),
        pytest.param("yes", "PUT", "no_allow_rule", None, id="what CUSTOM allows ALLOW may leave out"),
    ],
)
def test_policies_are_asked_in_istios_order(
    mesh: Mesh, policy: Policy, x_ext: str, method: str, reason: str, decider: str | None
) -> None:
    made = mesh(
        REGO,
        policy(allow(**operation(methods=["GET", "DELETE"])), name="allow"),
        policy(deny(**operation(methods=["DELETE"])), name="deny"),
        policy(custom(), name="custom"),
    )
    decision = made.decide(headers=[("x-ext", x_ext)], method=method)
    assert (decision.reason, decision.policy) == (reason, decider)


def test_what_only_custom_policies_speak_of_is_allowed_by_them(mesh: Mesh, policy: Policy) -> None:
    decision = mesh(REGO, policy(custom())).decide(headers=[("x-ext", "yes")])
    assert (decision.allowed, decision.reason, decision.policy) == (True, "rego_allowed", "shop/p")


def test_a_custom_policy_is_not_asked_where_no_rule_of_it_matches(mesh: Mesh, policy: Policy) -> None:
    decision = mesh(REGO, policy(custom(**operation(methods=["POST"])))).decide(method="GET")
    assert (decision.allowed, decision.reason) == (True, "no_allow_policy")


def test_the_first_matching_rule_is_named(mesh: Mesh, policy: Policy) -> None:
    rules = [operation(methods=["PUT"]), operation(methods=["GET"]), {}]
    assert mesh(policy({"rules": rules})).decide().rule == 1


# Policies that are not enforced ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reason", "shadow"),
    [
        pytest.param(
            "GET",
            "allow_rule",
            {"dry_run_deny": "allow", "dry_run_allow": "deny", "audit_rules": "shop/audit[1]"},
            id="on trial, an ALLOW policy would deny what it does not name",
        ),
        pytest.param(
            "PUT",
            "allow_rule",
            {
                "dry_run_deny": "deny",
                "dry_run_deny_policy": "shop/deny",
                "dry_run_deny_rule": 1,
                "dry_run_allow": "deny",
            },
            id="on trial, a DENY policy does not deny",
        ),
        pytest.param(
            "DELETE",
            "deny_rule",
            {
                "dry_run_deny": "allow",
                "dry_run_allow": "allow",
                "dry_run_allow_policy": "shop/allow",
                "dry_run_allow_rule": 0,
            },
            id="on trial, an ALLOW policy does not allow",
        ),
    ],
)  # fmt: skip
def test_what_is_not_enforced_decides_nothing_and_is_told(
    mesh: Mesh, policy: Policy, method: str, reason: str, shadow: dict[str, Any]
) -> None:
    made = mesh(
        policy(deny(**operation(methods=["DELETE"])), name="enforced-deny"),
        policy({"rules": [{}]}, name="enforced-allow"),
        policy({"action": "DENY", "rules": [operation(methods=["X"]), operation(methods=["PUT"])]}, name="deny",
               dry_run=True),
        policy(allow(**operation(methods=["DELETE"])), name="allow", dry_run=True),
        policy({"action": "AUDIT", "rules": [operation(methods=["X"]), operation(methods=["GET"])]}, name="audit"),
    )  # fmt: skip
    for decided_by in ("engine", "cache"):
        decision = made.decide(method=method)
        assert (decision.reason, decision.decided_by, decision.shadow) == (reason, decided_by, shadow)


def test_an_allow_policy_on_trial_does_not_close_a_workload(mesh: Mesh, policy: Policy) -> None:
    decision = mesh(policy({}, dry_run=True)).decide()
    assert (decision.reason, decision.shadow) == ("no_allow_policy", {"dry_run_allow": "deny"})


def test_without_such_policies_there_is_no_shadow(mesh: Mesh, policy: Policy) -> None:
    assert mesh(policy({"rules": [{}]})).decide().shadow == {}


# Where policies apply ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "selector", "workload", "applies"),
    [
        pytest.param("shop", None, "shop/catalog", True, id="own namespace"),
        pytest.param("shop", None, "front/web", False, id="other namespace"),
        pytest.param("istio-system", None, "shop/catalog", True, id="root namespace"),
        pytest.param("istio-system", None, "front/web", True, id="root namespace, anywhere"),
        pytest.param("istio-system", {"app": "web"}, "front/web", True, id="root namespace with a selector"),
        pytest.param("istio-system", {"app": "web"}, "shop/catalog", False, id="root namespace, others selected"),
        pytest.param("shop", {"app": "catalog"}, "shop/catalog", True, id="one label"),
        pytest.param("shop", {"app": "catalog", "tier": "back"}, "shop/catalog", True, id="all labels"),
        pytest.param("shop", {"app": "catalog", "tier": "front"}, "shop/catalog", False, id="one label differs"),
        pytest.param("shop", {"version": "v1"}, "shop/catalog", False, id="a label that the workload lacks"),
        pytest.param("shop", {"app": "cat*"}, "shop/catalog", False, id="a star is no wildcard"),
    ],
)
def test_policies_apply_where_namespace_and_selector_say(
    mesh: Mesh, policy: Policy, namespace: str, selector: dict[str, str] | None, workload: str, *, applies: bool
) -> None:
    spec: dict[str, Any] = {"action": "DENY", "rules": [{}]}
    if selector is not None:
        spec["selector"] = {"matchLabels": selector}
    assert mesh(policy(spec, namespace=namespace), workload=workload).decide().allowed is not applies


# One condition --------------------------------------------------------------------------------------------------------

BASIC: list[Any] = [
    ("principal, exact", source(principals=["cluster.local/ns/front/sa/web"]), {}, True),
    ("principal, exact, another", source(principals=["cluster.local/ns/front/sa/we"]), {}, False),
    ("principal, prefix", source(principals=["cluster.local/ns/front/*"]), {}, True),
    ("principal, prefix of another", source(principals=["cluster.local/ns/back/*"]), {}, False),
    ("principal, suffix", source(principals=["*/sa/web"]), {}, True),
    ("principal, suffix of another", source(principals=["*/sa/webb"]), {}, False),
    ("principal, present", source(principals=["*"]), {}, True),
    ("principal, absent", source(principals=["*"]), {"source_principal": None}, False),
    ("principal, one of several", source(principals=["x", "*/sa/web"]), {}, True),
    ("a principal is not written with its scheme", source(principals=[WEB]), {}, False),
    ("not principal", source(notPrincipals=["*/sa/web"]), {}, False),
    ("not principal, another", source(notPrincipals=["*/sa/other"]), {}, True),
    ("not principal, without a peer", source(notPrincipals=["*/sa/web"]), {"source_principal": None}, True),
    (
        "principal and not principal",
        source(principals=["cluster.local/*"], notPrincipals=["*/sa/other"]),
        {"source_principal": OTHER},
        False,
    ),
    ("namespace, exact", source(namespaces=["front"]), {}, True),
    ("namespace, prefix", source(namespaces=["fr*"]), {}, True),
    ("namespace, suffix", source(namespaces=["*ont"]), {}, True),
    ("namespace, a part of it", source(namespaces=["fron"]), {}, False),
    ("namespace, without a peer", source(namespaces=["front"]), {"source_principal": None}, False),
    ("not namespace", source(notNamespaces=["front"]), {}, False),
    ("not namespace, without a peer", source(notNamespaces=["front"]), {"source_principal": None}, True),
    (
        "namespace of an identity of another form",
        source(namespaces=["front"]),
        {"source_principal": "spiffe://cluster.local/front/web"},
        False,
    ),
    (
        "a namespace is not read out of the service account",
        source(namespaces=["front"]),
        {"source_principal": "spiffe://cluster.local/ns/dark/sa/ns/front/sa/web"},
        False,
    ),
    ("service account", source(serviceAccounts=["front/web"]), {}, True),
    ("service account of the policy's namespace", source(serviceAccounts=["web"]), {}, False),
    ("service account, another", source(serviceAccounts=["front/we"]), {}, False),
    ("service account, without a peer", source(serviceAccounts=["front/web"]), {"source_principal": None}, False),
    ("not service account", source(notServiceAccounts=["front/web"]), {}, False),
    ("not service account, without a peer", source(notServiceAccounts=["x"]), {"source_principal": None}, True),
    ("source and source: both must hold", source(principals=["*/sa/web"], namespaces=["dark"]), {}, False),
    ("address", source(ipBlocks=["10.0.0.1"]), {}, True),
    ("address, another", source(ipBlocks=["10.0.0.2"]), {}, False),
    ("block", source(ipBlocks=["10.0.0.0/8"]), {}, True),
    ("block, written with bits below its mask", source(ipBlocks=["10.9.9.9/8"]), {}, True),
    ("block, outside", source(ipBlocks=["11.0.0.0/8"]), {}, False),
    ("block of everything", source(ipBlocks=["0.0.0.0/0"]), {}, True),
    ("IPv4 in IPv6 is IPv4", source(ipBlocks=["10.0.0.0/8"]), {"source_ip": "::ffff:10.0.0.1"}, True),
    ("IPv6 address", source(ipBlocks=["fd00::1"]), {"source_ip": "fd00:0::1"}, True),
    ("IPv6 block", source(ipBlocks=["fd00::/8"]), {"source_ip": "fd12::1"}, True),
    ("IPv6 is in no IPv4 block", source(ipBlocks=["0.0.0.0/0"]), {"source_ip": "fd00::1"}, False),
    ("no address is in no block", source(ipBlocks=["0.0.0.0/0"]), {"source_ip": None}, False),
    ("not block", source(notIpBlocks=["10.0.0.0/8"]), {}, False),
    ("not block, outside", source(notIpBlocks=["11.0.0.0/8"]), {}, True),
    ("not block, IPv4 in IPv6", source(notIpBlocks=["10.0.0.0/8"]), {"source_ip": "::ffff:10.0.0.1"}, False),
    ("host", operation(hosts=["catalog.shop"]), {}, True),
    ("host, written in capitals", operation(hosts=["CATALOG.shop"]), {}, True),
    ("host, asked in capitals", operation(hosts=["catalog.shop"]), {"host": "Catalog.SHOP"}, True),
    ("host, suffix", operation(hosts=["*.shop"]), {}, True),
    ("host, prefix", operation(hosts=["catalog.*"]), {}, True),
    ("host, another", operation(hosts=["catalog"]), {}, False),
    ("not host", operation(notHosts=["*.SHOP"]), {"host": "catalog.Shop"}, False),
    ("port of the application", operation(ports=["8080"]), {"destination_port": 80}, True),
    ("not the port of the sidecar", operation(ports=["80"]), {"destination_port": 80}, False),
    ("port that no service names is itself", operation(ports=["1234"]), {"destination_port": 1234}, True),
    ("not port", operation(notPorts=["8080"]), {"destination_port": 80}, False),
    ("not port, another", operation(notPorts=["8080"]), {"destination_port": 90}, True),
    ("method", operation(methods=["GET"]), {}, True),
    ("methods are case-sensitive", operation(methods=["GET"]), {"method": "get"}, False),
    ("path template", operation(paths=["/books/{*}"]), {"path": "/books/7?x"}, True),
    ("path template, a segment more", operation(paths=["/books/{*}"]), {"path": "/books/7/8"}, False),
    ("path template, around it with //", operation(paths=["/books/{*}"]), {"path": "/books//7/"}, False),
    ("path template, any segments", operation(paths=["/{*}/x/{**}"]), {"path": "/a/x/b/c"}, True),
    ("not path template", operation(notPaths=["/{**}/secret"]), {"path": "/a/b/../secret"}, False),
    ("method, prefix", operation(methods=["P*"]), {"method": "PATCH"}, True),
    ("method, suffix", operation(methods=["*T"]), {"method": "PUT"}, True),
    ("method, present", operation(methods=["*"]), {}, True),
    ("not method", operation(notMethods=["GET"]), {}, False),
    ("path", operation(paths=["/items"]), {"path": "/items"}, True),
    ("path without its query", operation(paths=["/items"]), {"path": "/items?a=/x"}, True),
    ("path without its fragment", operation(paths=["/items"]), {"path": "/items#a"}, True),
    ("path, prefix", operation(paths=["/items/*"]), {"path": "/items/1"}, True),
    ("path, prefix, without its end", operation(paths=["/items/*"]), {"path": "/items"}, False),
    ("path, suffix", operation(paths=["*.txt"]), {"path": "/a.txt"}, True),
    ("path, suffix is not looked for in the query", operation(paths=["*.txt"]), {"path": "/a?b.txt"}, False),
    ("a star in the middle is itself", operation(paths=["/a/*/b"]), {"path": "/a/x/b"}, False),
    ("not path", operation(notPaths=["/items*"]), {"path": "/items/1"}, False),
    ("path and not path", operation(paths=["/items*"], notPaths=["/items/x"]), {"path": "/items/1"}, True),
    ("operation and operation: both must hold", operation(methods=["GET"], paths=["/a"]), {"path": "/b"}, False),
]

CONDITIONS: list[Any] = [
    ("header", when("request.headers[x-tenant]", "a"), {"headers": [("x-tenant", "a")]}, True),
    ("header, another value", when("request.headers[x-tenant]", "a"), {"headers": [("x-tenant", "b")]}, False),
    ("header names have no case", when("request.headers[X-Tenant]", "a"), {"headers": [("x-tenant", "a")]}, True),
    ("header names have no case, sent", when("request.headers[x-tenant]", "a"), {"headers": [("X-TENANT", "a")]}, True),
    ("header, prefix", when("request.headers[x-tenant]", "a*"), {"headers": [("x-tenant", "ab")]}, True),
    ("header, suffix", when("request.headers[x-tenant]", "*b"), {"headers": [("x-tenant", "ab")]}, True),
    ("header, present", when("request.headers[x-tenant]", "*"), {"headers": [("x-tenant", "z")]}, True),
    ("header, empty is present", when("request.headers[x-tenant]", "*"), {"headers": [("x-tenant", "")]}, True),
    ("header, absent", when("request.headers[x-tenant]", "*"), {}, False),
    ("header twice is not joined", when("request.headers[x]", "a,b"), {"headers": [("x", "a"), ("x", "b")]}, False),
    ("header twice is either", when("request.headers[x]", "a"), {"headers": [("x", "a"), ("x", "b")]}, True),
    ("not header", when("request.headers[x]", unless=("a",)), {"headers": [("x", "a")]}, False),
    ("not header, absent", when("request.headers[x]", unless=("a",)), {}, True),
    ("not header, present", when("request.headers[x]", unless=("*",)), {"headers": [("x", "b")]}, False),
    ("source.ip", when("source.ip", "10.0.0.0/24"), {}, True),
    ("source.ip, outside", when("source.ip", "10.0.1.0/24"), {}, False),
    ("not source.ip", when("source.ip", unless=("10.0.0.0/24",)), {}, False),
    ("source.namespace", when("source.namespace", "front"), {}, True),
    ("source.principal", when("source.principal", "*/sa/web"), {}, True),
    ("source.principal, another", when("source.principal", "*/sa/web"), {"source_principal": OTHER}, False),
    ("destination.ip", when("destination.ip", "127.0.0.0/8"), {}, True),
    ("destination.ip, another", when("destination.ip", "10.0.0.0/8"), {}, False),
    ("destination.port", when("destination.port", "8080"), {"destination_port": 80}, True),
    ("destination.port, the sidecar's", when("destination.port", "80"), {"destination_port": 80}, False),
    ("connection.sni", when("connection.sni", "catalog.shop"), {"sni": "catalog.shop"}, True),
    ("connection.sni, suffix", when("connection.sni", "*.shop"), {"sni": "catalog.shop"}, True),
    ("connection.sni, none", when("connection.sni", "*"), {}, False),
    ("no token has no principal", when("request.auth.principal", "*"), {}, False),
    ("no token has no audience", when("request.auth.audiences", "*"), {}, False),
    ("no token is not any principal", when("request.auth.principal", unless=("*",)), {}, True),
    (
        "two conditions: both must hold",
        {"when": [{"key": "source.namespace", "values": ["front"]}, {"key": "connection.sni", "values": ["x"]}]},
        {},
        False,
    ),
    (
        "two alternatives of from: one is enough",
        {"from": [{"source": {"namespaces": ["dark"]}}, {"source": {"namespaces": ["front"]}}]},
        {},
        True,
    ),
    (
        "two alternatives of to: one is enough",
        {"to": [{"operation": {"methods": ["PUT"]}}, {"operation": {"methods": ["GET"]}}]},
        {},
        True,
    ),
    (
        "from, to and when: all must hold",
        {**source(namespaces=["front"]), **operation(methods=["GET"]), **when("source.ip", "11.0.0.0/8")},
        {},
        False,
    ),
]


@pytest.mark.parametrize(
    ("rule", "request_fields", "matches"), [pytest.param(*row[1:], id=row[0]) for row in [*BASIC, *CONDITIONS]]
)
def test_a_rule_matches_alike_in_allow_and_deny_policies(
    mesh: Mesh, policy: Policy, rule: dict[str, Any], request_fields: dict[str, Any], *, matches: bool
) -> None:
    allowed = mesh(policy(allow(**rule))).decide(**request_fields)
    denied = mesh(policy(deny(**rule))).decide(**request_fields)
    assert (allowed.allowed, allowed.reason) == (matches, "allow_rule" if matches else "no_allow_rule")
    assert (denied.allowed, denied.reason) == (not matches, "deny_rule" if matches else "no_allow_policy")


# Paths ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "denied"),
    [
        ("/admin/users", True),
        ("//admin/users", True),
        ("/admin//users", True),
        ("/./admin/users", True),
        ("/x/../admin/users", True),
        ("/x/%2e%2e/admin/users", True),
        ("/x/%2E%2e/admin/users", True),
        ("/x/..;a=1/admin/users", True),
        ("/x/%2e%2e;a=1/admin/users", True),
        ("/.;/admin/users", True),
        ("/\\admin/users", True),
        ("/x\\..\\admin\\users", True),
        ("/%61dmin/users", True),
        ("/admin/users?x=/../..", True),
        ("/public/../../../admin/users", True),
        ("/admin/../public", False),
        ("/public?next=/admin/users", False),
        ("/public#/admin/users", False),
        ("/x/..%2fadmin/users", False),
        ("/%2fadmin/users", False),
        ("/ADMIN/users", False),
        ("/admin;x=1/users", False),
        ("/%2561dmin/users", False),
    ],
)
def test_a_denied_path_is_denied_however_it_is_written(mesh: Mesh, policy: Policy, path: str, *, denied: bool) -> None:
    decision = mesh(policy(deny(**operation(paths=["/admin/*"])))).decide(path=path)
    assert decision.allowed is not denied


@pytest.mark.parametrize(
    "path", ["/public/../admin", "/public/%2e%2e/admin", "/public/..;/admin", "/public/..\\admin", "/public/./../admin"]
)
def test_an_allowed_prefix_does_not_lead_out_of_itself(mesh: Mesh, policy: Policy, path: str) -> None:
    assert not mesh(policy(allow(**operation(paths=["/public/*"])))).decide(path=path).allowed


@pytest.mark.parametrize("path", ["/", "//", "///", "/.//", "/a/..//", "/\\"])
def test_a_rule_for_the_root_is_for_all_ways_to_write_it(mesh: Mesh, policy: Policy, path: str) -> None:
    """Envoy makes one slash of two, but for a path that has nothing else."""
    assert not mesh(policy(deny(**operation(paths=["/"])))).decide(path=path).allowed


MODES = {"NONE": 0, "BASE": 1, "MERGE_SLASHES": 2, "DECODE_AND_MERGE_SLASHES": 3}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("path", "least"), [("/x/../a/b", 1), ("/a//b", 2), ("/a%2fb", 3), ("/a%252fb", 4)])
def test_paths_are_normalized_in_the_meshs_mode(mesh: Mesh, policy: Policy, mode: str, path: str, least: int) -> None:
    settings = policy({"pathNormalization": {"normalization": mode}}, kind="MeshConfig")
    made = mesh(settings, policy(deny(**operation(paths=["/a/b"]))))
    assert made.decide(path=path).allowed is (MODES[mode] < least)


@pytest.mark.parametrize(
    ("proxies", "forwarded", "client"),
    [
        (0, "203.0.113.9", "10.0.0.1"),
        (1, None, "10.0.0.1"),
        (1, "6.6.6.6, 203.0.113.9", "203.0.113.9"),
        (2, "6.6.6.6, 203.0.113.9, 198.51.100.1", "203.0.113.9"),
        (2, "203.0.113.9", "10.0.0.1"),
    ],
)
def test_the_client_behind_trusted_proxies_is_the_remote_one(
    mesh: Mesh, policy: Policy, proxies: int, forwarded: str | None, client: str
) -> None:
    settings = policy({"defaultConfig": {"gatewayTopology": {"numTrustedProxies": proxies}}}, kind="MeshConfig")
    headers = [("x-forwarded-for", forwarded)] if forwarded else []
    for rule in (source(remoteIpBlocks=[client]), when("remote.ip", client)):
        assert mesh(settings, policy(allow(**rule))).decide(headers=headers).allowed
    for rule in (source(notRemoteIpBlocks=[client]), when("remote.ip", unless=(client,))):
        assert not mesh(settings, policy(allow(**rule))).decide(headers=headers).allowed
    assert mesh(settings, policy(allow(**source(ipBlocks=["10.0.0.1"])))).decide(headers=headers).allowed


def test_a_policy_for_a_service_is_enforced_at_its_ports(mesh: Mesh, policy: Policy) -> None:
    other = """
apiVersion: v1
kind: Service
metadata: {name: admin, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 70, targetPort: 7070}]}
"""
    spec = {"targetRefs": [{"group": "", "kind": "Service", "name": "admin"}], "action": "DENY", "rules": [{}]}
    made = mesh(other, policy(spec))
    assert {port: made.decide(destination_port=port).allowed for port in (70, 80, 90)} == {
        70: False, 80: True, 90: True
    }  # fmt: skip
    assert mesh(other, policy(spec), workload="front/web").decide(destination_port=70).allowed


@pytest.mark.parametrize("trust_domain", ["cluster.local", "old.example", "older.example"])
def test_a_principal_is_meant_in_all_trust_domains_of_the_mesh(mesh: Mesh, policy: Policy, trust_domain: str) -> None:
    settings = policy({"trustDomainAliases": ["old.example", "older.example"]}, kind="MeshConfig")
    made = mesh(settings, policy(deny(**source(principals=["old.example/ns/front/sa/web"]))))
    assert not made.decide(source_principal=f"spiffe://{trust_domain}/ns/front/sa/web").allowed
    assert made.decide(source_principal="spiffe://other.example/ns/front/sa/web").allowed


def test_an_encoded_slash_stays_encoded(mesh: Mesh, policy: Policy) -> None:
    made = mesh(policy(allow(**operation(paths=["/a%2Fb"]))))
    assert made.decide(path="/a%2Fb").allowed
    assert not made.decide(path="/a/b").allowed


def test_the_asterisk_of_options_is_not_a_path_below_the_root(mesh: Mesh, policy: Policy) -> None:
    assert not mesh(policy(allow(**operation(paths=["/*"])))).decide(method="OPTIONS", path="*").allowed


# Remembering ----------------------------------------------------------------------------------------------------------


def test_a_second_request_with_the_same_attributes_is_answered_from_memory(mesh: Mesh, policy: Policy) -> None:
    made = mesh(policy(allow(**operation(methods=["GET"]))))
    first, second = made.decide(path="/a"), made.decide(path="/b")
    assert (first.decided_by, first.cacheable) == ("engine", True)
    assert (second.decided_by, second.allowed, second.policy, second.rule) == ("cache", True, "shop/p", 0)


@pytest.mark.parametrize(
    ("rule", "first", "second"),
    [
        pytest.param(operation(methods=["GET"]), {"method": "GET"}, {"method": "PUT"}, id="method"),
        pytest.param(operation(paths=["/a"]), {"path": "/a"}, {"path": "/b"}, id="path"),
        pytest.param(operation(hosts=["a"]), {"host": "a"}, {"host": "b"}, id="host"),
        pytest.param(operation(ports=["8080"]), {"destination_port": 80}, {"destination_port": 90}, id="port"),
        pytest.param(source(principals=["*/web"]), {}, {"source_principal": OTHER}, id="principal"),
        pytest.param(source(ipBlocks=["10.0.0.1"]), {}, {"source_ip": "10.0.0.2"}, id="address"),
        pytest.param(when("request.headers[x]", "a"), {"headers": [("x", "a")]}, {}, id="header, then none"),
        pytest.param(
            when("request.headers[x]", unless=("*",)), {}, {"headers": [("x", "a")]}, id="no header, then one"
        ),
        pytest.param(when("connection.sni", "a"), {"sni": "a"}, {"sni": None}, id="server name"),
    ],
)
def test_memory_tells_apart_what_rules_read(
    mesh: Mesh, policy: Policy, rule: dict[str, Any], first: dict[str, Any], second: dict[str, Any]
) -> None:
    made = mesh(policy(allow(**rule)))
    assert made.decide(**first).allowed
    other = made.decide(**second)
    assert (other.allowed, other.decided_by) == (False, "engine")


def test_memory_does_not_run_two_values_together(mesh: Mesh, policy: Policy) -> None:
    rule = {
        "when": [{"key": f"request.headers[{name}]", "values": [value]} for name, value in (("a", "1"), ("b", "23"))]
    }
    made = mesh(policy(allow(**rule)))
    assert made.decide(headers=[("a", "1"), ("b", "23")]).allowed
    assert not made.decide(headers=[("a", "12"), ("b", "3")]).allowed


def test_memory_of_one_program_does_not_answer_for_another(mesh: Mesh, policy: Policy) -> None:
    before, after = mesh(policy({"rules": [{}]})), mesh(policy({}))
    after.decider = before.decider
    assert before.decide().allowed
    assert not after.decide().allowed


def test_a_rego_policy_that_reads_single_headers_is_remembered(mesh: Mesh, policy: Policy) -> None:
    made = mesh(REGO, policy(custom()))
    assert made.decide(headers=[("x-ext", "yes")]).cacheable
    assert made.decide(headers=[("x-ext", "yes"), ("x", "other")]).decided_by == "cache"
    assert made.decide(headers=[("x-ext", "no")]).decided_by == "engine"


def test_a_rego_policy_that_reads_all_headers_is_asked_every_time(mesh: Mesh, policy: Policy) -> None:
    rego = REGO.replace('headers["x-ext"] == "yes"', 'headers[_] == "yes"')
    made = mesh(rego, policy(custom()))
    decisions = [made.decide(headers=[("a", "yes")]) for _ in range(2)]
    assert [(each.allowed, each.cacheable, each.decided_by) for each in decisions] == [(True, False, "engine")] * 2


def test_the_attributes_of_a_program_are_those_that_its_rules_read(mesh: Mesh, policy: Policy) -> None:
    rule = {**source(namespaces=["a"]), **operation(methods=["GET"]), **when("request.headers[X-A]", "a")}
    program: Program = mesh(policy(allow(**rule))).program
    assert sorted(program.attributes) == ["request.headers[x-a]", "request.method", "source.namespace"]


def test_a_decision_names_the_program_that_made_it(mesh: Mesh, policy: Policy) -> None:
    made = mesh(policy({"rules": [{}]}))
    assert made.decide().program == made.program.hash
    assert made.program.principal == "spiffe://cluster.local/ns/shop/sa/catalog"
