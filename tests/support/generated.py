"""Policy sets and requests drawn at random from small pools, so that they often meet.

What is drawn comes from a `random.Random`: a seeded one, or hypothesis's, which then shrinks what fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from random import Random
from typing import Any

import yaml
from support.issuer import Issuer
from support.reference import Asked, Outcome, Policy, Providers, Token, Workload, decide

from peltast.authz.revision import Revision, compile_revision
from peltast.policies.snapshot import load

NAMESPACE, ADDRESS = "shop", "127.0.40.2"
PORTS = {8080: 8443, 9090: 9443}
"""The sidecar's port for each of the application's."""

LABELS = {"app": "catalog", "tier": "back"}
WORKLOAD = Workload(NAMESPACE, LABELS)

MESH = f"""
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: catalog, namespace: {NAMESPACE}}}
spec: {{address: {ADDRESS}, labels: {json.dumps(LABELS)}, serviceAccount: catalog}}
---
apiVersion: v1
kind: Service
metadata: {{name: catalog, namespace: {NAMESPACE}}}
spec:
  selector: {{app: catalog}}
  ports: {json.dumps([{"port": port, "targetPort": target} for target, port in PORTS.items()])}
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {{name: flag, namespace: {NAMESPACE}}}
spec:
  entrypoint: data.flag.allow
  module: |
    package flag
    default allow := false
    allow if input.attributes.request.http.headers["x-b"] == "a"
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {{name: readers, namespace: {NAMESPACE}}}
spec:
  entrypoint: data.readers.answer
  data: {{methods: [GET, HEAD]}}
  module: |
    package readers
    default answer := {{"allowed": false}}
    answer := {{"allowed": true}} if input.attributes.request.http.method in data.methods
"""

PROVIDERS: Providers = {
    f"{NAMESPACE}/flag": lambda asked: "a" in [value for name, value in asked.headers if name.lower() == "x-b"],
    f"{NAMESPACE}/readers": lambda asked: asked.method in ("GET", "HEAD"),
}
"""What the two Rego policies say, in Python."""


@dataclass(frozen=True)
class Caller:
    """Who connects, and where to."""

    principal: str
    source_ip: str
    sni: str | None
    port: int


def _caller(path: str, source_ip: str, sni: str | None, port: int) -> Caller:
    return Caller(f"spiffe://cluster.local/{path}", source_ip, sni, port)


CALLERS = [
    _caller("ns/a/sa/x", "127.0.41.1", "catalog.shop", 8080),
    _caller("ns/a/sa/xy", "127.0.41.2", None, 9090),
    _caller("ns/ab/sa/x", "127.0.41.1", "a.example", 9090),
    _caller("ns/b/sa/x", "127.0.42.1", "ab.example", 8080),
    _caller("ns/shop/sa/x", "127.0.42.1", "catalog.shop", 9090),
    _caller("ns/shop/sa/catalog", "127.0.41.2", None, 8080),
    _caller("batch/ns/a/sa/x", "127.0.42.2", "a.example", 8080),
]
PRINCIPALS = [caller.principal.removeprefix("spiffe://") for caller in CALLERS]
BLOCKS = ["127.0.41.0/24", "127.0.42.0/24", "127.0.41.1", "127.0.40.0/22", "127.0.42.2/32", "10.0.0.0/8", "fd00::/8"]
ACCOUNTS = ["a/x", "a/xy", "ab/x", "shop/x", "x", "catalog"]
METHODS = ["GET", "PUT", "POST", "HEAD", "OPTIONS"]
HOSTS = ["catalog.shop", "Catalog.shop", "a.example", "ab.example:8443"]
PATHS = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/",
    "/a/b/c",
    "/ab",
    "/A/b",
    "/b/a.txt",
    "/a/b?c=/d",
    "/b?/a/b",
    "//a//b",
    "/a/./b",
    "/b/../a/b",
    "/a/b/..",
    "/a/%2e%2e/ab",
    "/b/..;v=1/a",
    "/a\\b",
    "/%61/b",
    "/a%2fb",
    "/a/b%20c",
    "/a;v=1/b",
]
PLAIN_PATHS = [path for path in PATHS if "?" not in path]
HEADERS = ["x-a", "X-B"]
HEADER_VALUES = ["", "a", "ab", "ba", "a*b", "*"]
SERVER_NAMES = ["catalog.shop", "a.example", "ab.example"]

ONE, TWO = Issuer("https://one.example"), Issuer("https://two.example/x")
AUDIENCES = ["shop", "stock"]
CLAIMS: list[dict[str, Any]] = [
    {"sub": "ada"},
    {"sub": "ad", "aud": ["stock", "bank"], "groups": ["a", "ab"], "azp": "ui"},
    {"sub": "x/ada", "groups": "a", "scope": "read write", "realm": {"roles": ["a", "b"]}},
    {"aud": "stock", "azp": "u", "scope": "read", "realm": {"roles": "ab"}, "level": 3, "groups": ["b", 3]},
    {"sub": "ada", "aud": "bank", "groups": ["a"]},
]
SUBJECTS = ["https://one.example/ada", "https://two.example/x/ada", "https://one.example/ad", "https://two.example/ada"]


def _token(issuer: Issuer, algorithm: str, fault: str | None, made_by: Issuer | None = None, **claims: Any) -> Token:
    named = {"iss": issuer.name, "aud": "shop", **claims}
    return Token((made_by or issuer).token(algorithm, **{"sub": None, **named}), issuer.name, named, fault)


TOKENS = [
    *(_token(issuer, algorithm, None, **claims)
      for claims in CLAIMS for issuer, algorithm in ((ONE, "RS256"), (TWO, "ES256"))),
    _token(ONE, "RS256", "token_expired", sub="ada", exp=int(time.time()) - 3600),
    _token(ONE, "RS256", "token_signature", made_by=Issuer(ONE.name), sub="ada"),
    _token(Issuer("https://three.example"), "ES256", None, sub="ada"),
    Token("not.a.token", fault="token_malformed"),
]  # fmt: skip

AUTHENTICATIONS: list[list[dict[str, Any]]] = [
    [],
    [{"issuer": ONE.name, "jwks": ONE.jwks(), "forwardOriginalToken": True}],
    [{"issuer": ONE.name, "jwks": ONE.jwks(), "audiences": AUDIENCES, "forwardOriginalToken": True}],
    [
        {"issuer": TWO.name, "jwks": TWO.jwks(), "forwardOriginalToken": True},
        {"issuer": ONE.name, "jwks": ONE.jwks(), "audiences": ["stock"], "forwardOriginalToken": True},
    ],
]
"""The rules for tokens that a policy set may have."""


@dataclass(frozen=True)
class PolicySet:
    """What is configured for the workload."""

    authentication: int
    policies: tuple[Policy, ...]

    @property
    def rules(self) -> list[dict[str, Any]]:
        return AUTHENTICATIONS[self.authentication]

    @cached_property
    def text(self) -> str:
        authentications = [("RequestAuthentication", each) for each in self._authentications]
        policies = [("AuthorizationPolicy", each) for each in self.policies]
        return yaml.dump_all(
            {
                "apiVersion": "security.istio.io/v1",
                "kind": kind,
                "metadata": {"namespace": policy.namespace, "name": policy.name},
                "spec": policy.spec,
            }
            for kind, policy in [*authentications, *policies]
        )

    @property
    def _authentications(self) -> list[Policy]:
        return [Policy(NAMESPACE, "tokens", {"jwtRules": self.rules})] if self.rules else []

    def compile(self) -> Revision:
        """By the real compiler."""
        files = {"mesh.yaml": MESH.encode(), "policies.yaml": self.text.encode()}
        return compile_revision(load(files, "cluster.local", 1))

    def decide(self, asked: Asked) -> Outcome:
        """By the reference."""
        return decide(WORKLOAD, self._authentications, self.policies, PROVIDERS, asked)


# Policies -------------------------------------------------------------------------------------------------------------


def policy_set(choose: Random) -> PolicySet:
    policies = tuple(_policy(choose, f"p{index}") for index in range(choose.randint(0, 5)))
    return PolicySet(choose.randrange(len(AUTHENTICATIONS)), policies)


def _policy(choose: Random, name: str) -> Policy:
    action = choose.choice(["ALLOW", "ALLOW", "ALLOW", "DENY", "DENY", "CUSTOM"])
    fewest = 0 if action == "ALLOW" else 1
    spec: dict[str, Any] = {"action": action, "rules": [_rule(choose) for _ in range(choose.randint(fewest, 3))]}
    if action == "CUSTOM":
        spec["provider"] = {"name": choose.choice(sorted(PROVIDERS))}
    selector = choose.choice([None, None, None, {"app": "catalog"}, LABELS, {"app": "web"}])
    if selector is not None:
        spec["selector"] = {"matchLabels": dict(selector)}
    return Policy(choose.choice([NAMESPACE, NAMESPACE, NAMESPACE, "istio-system", "a"]), name, spec)


def _rule(choose: Random) -> dict[str, Any]:
    parts = {
        "from": lambda: _some(choose, lambda: {"source": _source(choose)}),
        "to": lambda: _some(choose, lambda: {"operation": _fields(choose, OPERATION)}),
        "when": lambda: _some(choose, lambda: _condition(choose)),
    }
    names = choose.sample(sorted(parts), choose.choice([0, 1, 1, 1, 2, 2, 3]))
    return {name: parts[name]() for name in names}


def _some(choose: Random, make: Callable[[], Any]) -> list[Any]:
    return [make() for _ in range(choose.choice([1, 1, 2]))]


def _source(choose: Random) -> dict[str, Any]:
    accounts = choose.random() < 0.2
    return _fields(choose, SOURCE_BY_ACCOUNT if accounts else SOURCE)


def _fields(choose: Random, fields: dict[str, Callable[[Random], str]]) -> dict[str, Any]:
    """One field or two, each as it is, as its ``not``, or as both."""
    made: dict[str, Any] = {}
    for name in choose.sample(sorted(fields), choose.choice([1, 1, 2])):
        for asked in choose.choice([(name,), (name,), (_not(name),), (name, _not(name))]):
            made[asked] = _some(choose, partial(fields[name], choose))
    return made


def _not(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def _condition(choose: Random) -> dict[str, Any]:
    key = choose.choice(sorted(CONDITIONS))
    names = choose.choice([("values",), ("values",), ("notValues",), ("values", "notValues")])
    return {"key": key, **{name: _some(choose, partial(CONDITIONS[key], choose)) for name in names}}


def _pattern(values: list[str], choose: Random) -> str:
    value = choose.choice([value for value in values if value])
    cut = choose.randint(1, max(1, len(value) - 1))
    return choose.choice([value, value, value, value[:cut] + "*", "*" + value[-cut:], "*"])


def _path(choose: Random) -> str:
    """A path; perhaps a template."""
    path = choose.choice(["/a", "/a/", "/a/b", "/a/b/c", "/b/a.txt", "/a%2fb", "/a/b%20c", "/a;v=1/b"])
    if choose.random() < 0.6:
        return _pattern(PLAIN_PATHS if choose.random() < 0.2 else [path], choose)
    segments = [choose.choice([segment, segment, "{*}"]) for segment in path.split("/")[1:]]
    if choose.random() < 0.5:
        segments[choose.randrange(len(segments)) :] = choose.choice([["{**}"], ["{**}", "b"]])
    return "/" + "/".join(segments)


def _of(*values: str) -> Callable[[Random], str]:
    return partial(_pattern, list(values))


def _exactly(*values: str) -> Callable[[Random], str]:
    return lambda choose: choose.choice(values)


SOURCE = {
    "principals": _of(*PRINCIPALS),
    "requestPrincipals": _of(*SUBJECTS),
    "namespaces": _of("a", "ab", "b", "shop"),
    "ipBlocks": _exactly(*BLOCKS),
}
SOURCE_BY_ACCOUNT = {"serviceAccounts": _exactly(*ACCOUNTS), "requestPrincipals": _of(*SUBJECTS)}
OPERATION = {"hosts": _of(*HOSTS), "ports": _exactly("8080", "9090", "8443"), "methods": _of(*METHODS), "paths": _path}
CONDITIONS = {
    "request.headers[x-a]": _of(*HEADER_VALUES),
    "request.headers[X-B]": _of(*HEADER_VALUES),
    "request.auth.principal": _of(*SUBJECTS),
    "request.auth.audiences": _of(*AUDIENCES, "bank"),
    "request.auth.presenter": _of("ui", "u"),
    "request.auth.claims[sub]": _of("ada", "ad", "x/ada"),
    "request.auth.claims[groups]": _of("a", "ab", "b", "3"),
    "request.auth.claims[scope]": _of("read", "write"),
    "request.auth.claims[realm][roles]": _of("a", "ab", "b"),
    "request.auth.claims[realm]": _of("a"),
    "request.auth.claims[level]": _of("3"),
    "source.ip": _exactly(*BLOCKS),
    "source.namespace": _of("a", "ab", "b", "shop"),
    "source.principal": _of(*PRINCIPALS),
    "source.serviceAccount": _exactly(*ACCOUNTS),
    "destination.ip": _exactly(ADDRESS, "127.0.40.0/24", "10.0.0.0/8"),
    "destination.port": _exactly("8080", "9090", "8443"),
    "connection.sni": _of(*SERVER_NAMES),
}


# Requests -------------------------------------------------------------------------------------------------------------


def request(choose: Random, caller: Caller) -> Asked:
    names = choose.choice([[], ["x-a"], ["X-B"], ["x-a", "x-b"], ["x-a", "x-a"]])
    return Asked(
        principal=caller.principal,
        source_ip=caller.source_ip,
        destination_ip=ADDRESS,
        port=caller.port,
        sni=caller.sni,
        method=choose.choice(METHODS),
        host=choose.choice(HOSTS),
        path=choose.choice(PATHS),
        headers=tuple((name, choose.choice(HEADER_VALUES)) for name in names),
        token=choose.choice(TOKENS) if choose.random() < 0.6 else None,
    )
