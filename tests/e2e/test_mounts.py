"""One engine, two mounts: the same generated requests are decided alike in Envoy and in Python."""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from support.http import Connection, Response
from support.issuer import Issuer
from support.peer import context, svid_for
from support.running import SERVER, SIDECAR_PORT, RunningMesh, eventually

from peltast.authz._engine import Decision, Program, normalize_path
from peltast.authz.check.documents import check_revision
from peltast.authz.check.service import CheckService
from peltast.authz.revision import compile_revision
from peltast.policies.snapshot import load
from peltast.policies.sources.folder import read_folder

REQUESTS = 3000

SERVER_ID = "spiffe://cluster.local/ns/shop/sa/server"
PEERS = [f"spiffe://cluster.local/ns/{namespace}/sa/{name}" for namespace, name in
         [("shop", "client"), ("shop", "other"), ("office", "client")]]  # fmt: skip
METHODS = ["GET", "POST", "DELETE", "PUT"]
PATHS = [
    "/",
    "/open",
    "/open/",
    "/open/a",
    "/open/a?b=c&d=%2F",
    "/OPEN/a",
    "/open//a",
    "//open/a",
    "/open/./a",
    "/open/../shut/a",
    "/open/%2e%2e/shut/a",
    "/open/%2E%2e/%2e%2e/shut/b",
    "/shut/%2e%2e/open",
    "/open/..%2fshut/a",
    "/open/%2fa",
    "/open/%41",
    "/%6fpen/a",
    "/open/a%20b",
    "/open\\a",
    "/open;x=1/a",
    "/open/..;/shut/a",
    "/open/a;b/../c",
    "/shut/a",
    "/shut/a/secret",
    "/rego/7",
    "/rego/7/eu",
    "/tokens/x",
    "/tokens/lists",
    "/tokens/ada",
    "/tokens//ada?a=b",
    "/a/b/c/d.json",
]
HEADERS = [
    {},
    {"x-tenant": "blue"},
    {"x-tenant": "green"},
    {"x-tenant": "blue-1", "x-debug": "1"},
    {"x-tenant": ""},
    {"x-user": "root", "x_user": "root", "cookie": "a=b"},
]
OF_INTEREST = ("authorization", "cookie", "x-user", "x_user", "x-payload", "x-region")
"""Headers that tokens and policies change."""

SHADOW = [
    "dry_run_deny",
    "dry_run_deny_policy",
    "dry_run_deny_rule",
    "dry_run_allow",
    "dry_run_allow_policy",
    "dry_run_allow_rule",
    "audit_rules",
]

POLICIES = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  jwtRules:
    - issuer: https://one.example
      audiences: [shop]
      jwks: '@JWKS@'
      fromHeaders: [{name: Authorization, prefix: "Bearer "}]
      fromCookies: [jwt]
      fromParams: [access_token]
      outputPayloadToHeader: x-payload
      outputClaimToHeaders: [{header: x-user, claim: sub}]
    - {issuer: https://three.example, jwks: '@JWKS@', forwardOriginalToken: true}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: istio-system}
spec:
  action: DENY
  rules:
    - to: [{operation: {paths: ["*/secret"], notMethods: [GET]}}]
    - from: [{source: {notNamespaces: [shop]}}]
      to: [{operation: {paths: ["/shut*"]}}]
    - when: [{key: "request.headers[x-debug]", values: ["*"]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
    - from: [{source: {principals: ["*/sa/client"]}}]
      to: [{operation: {methods: [GET], paths: ["/open", "/open/*"]}}]
    - from: [{source: {namespaces: [shop]}}]
      to: [{operation: {methods: [GET, POST], paths: ["/shut/*", "/rego/*", "*.json"]}}]
      when: [{key: "request.headers[x-tenant]", values: ["blue*"], notValues: [blue-1]}]
    - from: [{source: {requestPrincipals: ["https://one.example/*"]}}]
      to: [{operation: {paths: ["/tokens/*"]}}]
      when: [{key: "request.auth.claims[groups]", values: [writers]}]
    - from: [{source: {notRequestPrincipals: ["*"]}}]
      to: [{operation: {paths: ["/tokens/lists"], methods: [PUT]}}]
    - to: [{operation: {paths: ["/tokens/ada"]}}]
      when: [{key: "request.headers[x-user]", values: [ada]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried-deny, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  action: DENY
  rules:
    - to: [{operation: {methods: [PUT]}}]
    - when: [{key: "request.auth.claims[groups]", values: [writers]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried-allow, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  rules: [{from: [{source: {namespaces: [office]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: watched, namespace: shop}
spec:
  action: AUDIT
  rules: [{to: [{operation: {paths: ["/tokens/*", "/rego/*"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: shop}
spec:
  action: CUSTOM
  provider: {name: regions}
  rules: [{to: [{operation: {paths: ["/rego/*"]}}]}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: regions, namespace: shop}
spec:
  entrypoint: data.regions.answer
  data: {known: [eu]}
  module: |
    package regions
    import rego.v1
    default answer := {"allowed": false, "http_status": 402, "body": "where?"}
    answer := {"allowed": true, "headers": {"x-region": input.parsed_path[2]}} if input.parsed_path[2] in data.known
    answer := true if input.attributes.request.http.method == "POST"
"""


@dataclass(frozen=True)
class Case:
    peer: str
    method: str
    path: str
    headers: dict[str, str]


def generated(issuer: Issuer, seed: int) -> list[Case]:
    choose = random.Random(seed)
    tokens = [
        "",
        issuer.token(groups=["writers", "readers"]),
        issuer.token("ES256", groups="writers"),
        issuer.token(iss="https://three.example", groups=["writers"]),
        issuer.token(groups=["readers"]),
        issuer.token(exp=int(time.time()) - 3600),
        issuer.token(aud="elsewhere", groups=["writers"]),
        Issuer(issuer.name).token(groups=["writers"]),
        Issuer("https://two.example").token(),
        "not.a.token",
    ]
    cases = []
    for _ in range(REQUESTS):
        token = choose.choice(tokens)
        headers = {**choose.choice(HEADERS), "x-request-id": str(uuid.UUID(int=choose.getrandbits(128), version=4))}
        method, path = choose.choice(METHODS), choose.choice(PATHS)
        for place in choose.choice(PLACES) if token else ():
            path = put(place, token, headers, path)
        cases.append(Case(choose.choice(PEERS), method, path, headers))
    return cases


PLACES = [["header"], ["header"], ["header"], ["cookie"], ["parameter"], ["header", "parameter"], ["bad", "cookie"]]


def put(place: str, token: str, headers: dict[str, str], path: str) -> str:
    """Puts `token` into a place of a request, and gives its path then."""
    match place:
        case "header":
            headers["authorization"] = f"Bearer {token}"
        case "bad":
            headers["authorization"] = "Bearer another"
        case "cookie":
            headers["cookie"] = f"jwt={token}; a=b"
        case "parameter":
            return f"{path}{'&' if '?' in path else '?'}access_token={token}"
    return path


async def test_generated_requests_are_decided_alike_in_both_mounts(folder: Path, state: Path, tmp_path: Path) -> None:
    issuer = Issuer("https://one.example")
    (folder / "policies.yaml").write_text(POLICIES.replace("@JWKS@", issuer.jwks()))
    cases = generated(issuer, seed=20261121)
    async with RunningMesh(folder, state) as mesh:
        answers = await through_envoy(cases, state, tmp_path)
        recorded = await eventually(lambda: on_record(mesh, len(cases)), "every request is on record")
    revision, service = compile_revision(load(read_folder(folder), "cluster.local", 1)), CheckService()
    service.take(check_revision(revision))
    program = Program.load(revision.programs["shop/server"])
    outcomes: Counter[tuple[Any, ...]] = Counter()
    for case in cases:
        request_id = case.headers["x-request-id"]
        decision = service.decide(check_request(case))
        effect = "allow" if decision.allowed else "deny"
        here = (effect, decision.status, decision.policy, decision.rule, decision.reason)
        shadow = tuple(decision.shadow.get(name) for name in SHADOW)
        assert recorded[request_id] == (*here, *shadow), case
        assert answers[request_id].status == decision.status, case
        if decision.allowed:
            assert seen_by_application(answers[request_id]) == wanted_by(decision, case, program), case
        else:
            challenge = dict(decision.response_headers_to_add).get("www-authenticate")
            assert answers[request_id].headers.get("www-authenticate") == challenge, case
        outcomes[here] += 1
    assert len(outcomes) >= 12, f"the requests try few rules: {outcomes}"


def seen_by_application(response: Response) -> dict[str, str]:
    """The path and the headers that changed on the way, as the application echoed them."""
    echo = response.json()
    headers = {name: value for name, value in echo["headers"].items() if name in OF_INTEREST}
    return {":path": echo["path"], **headers}


def wanted_by(decision: Decision, case: Case, program: Program) -> dict[str, str]:
    """The same, as the Python mount says that it should be."""
    wanted = {":path": normalize_path(program, case.path.encode()).decode()}
    wanted |= {name: value for name, value in case.headers.items() if name in OF_INTEREST}
    wanted |= dict(decision.request_headers_to_set)
    return {name: value for name, value in wanted.items() if name not in decision.request_headers_to_remove}


async def through_envoy(cases: list[Case], state: Path, folder: Path) -> dict[str, Response]:
    """Each request's answer, by its id."""
    answers = {}
    for number, peer in enumerate(PEERS):
        connection = await Connection.open(
            SERVER, SIDECAR_PORT, context(folder / f"peer-{number}", svid_for(state, peer))
        )
        for case in cases:
            if case.peer == peer:
                response = await connection.ask(case.method, case.path, case.headers)
                answers[case.headers["x-request-id"]] = response
        connection.close()
    return answers


async def on_record(mesh: RunningMesh, expected: int) -> dict[str, tuple[Any, ...]] | None:
    connection = await mesh.connect()
    rows = await connection.fetch("SELECT * FROM records WHERE kind = 'decision'")
    await connection.close()
    decided = {
        row["request_id"]: tuple(row[name] for name in ("effect", "status", "policy", "rule", "reason", *SHADOW))
        for row in rows
    }
    return decided if len(decided) == expected else None


def check_request(case: Case) -> CheckRequest:
    """What a sidecar would ask the check service."""
    http = AttributeContext.HttpRequest(
        method=case.method,
        host="server.shop.svc.cluster.local",
        path=case.path,
        scheme="https",
        protocol="HTTP/1.1",
        headers=case.headers,
    )
    attributes = AttributeContext(
        source=AttributeContext.Peer(principal=case.peer, address=address("127.0.0.1", 40000)),
        destination=AttributeContext.Peer(principal=SERVER_ID, address=address(SERVER, SIDECAR_PORT)),
        request=AttributeContext.Request(http=http),
    )
    return CheckRequest(attributes=attributes)


def address(host: str, port: int) -> Address:
    return Address(socket_address=SocketAddress(address=host, port_value=port))
