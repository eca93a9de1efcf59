"""A plain evaluator of AuthorizationPolicy and RequestAuthentication, to hold the engine against.

Written from Istio's reference and docs/differences.md, as slow and as short as possible. It shares no code with the
compiler or the engine, and takes another road where there is one: values are regular expressions, paths are lists.

https://istio.io/latest/docs/reference/config/security/authorization-policy/
https://istio.io/latest/docs/reference/config/security/conditions/
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

ROOT_NAMESPACE = "istio-system"

Values = list[str]
Matches = Callable[[str, str], bool]


@dataclass(frozen=True)
class Token:
    """A token as its issuer made it; `fault` is the reason for which it must be refused whoever asks for it."""

    text: str
    issuer: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)
    fault: str | None = None

    @property
    def audiences(self) -> Values:
        given = self.claims.get("aud", [])
        return given if isinstance(given, list) else [given]


@dataclass(frozen=True)
class Asked:
    """A request, as it is sent."""

    principal: str | None = None
    source_ip: str = "127.0.0.1"
    destination_ip: str = "127.0.0.2"
    port: int = 8080
    """Of the application."""
    sni: str | None = None
    method: str = "GET"
    host: str = "a.example"
    path: str = "/"
    headers: Sequence[tuple[str, str]] = ()
    token: Token | None = None


@dataclass(frozen=True)
class Policy:
    """A policy of either kind, as it is written."""

    namespace: str
    name: str
    spec: Mapping[str, Any]

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Workload:
    """Whom requests are for."""

    namespace: str
    labels: Mapping[str, str]

    def is_selected(self, policy: Policy) -> bool:
        wanted = policy.spec.get("selector", {}).get("matchLabels", {})
        in_scope = policy.namespace in (ROOT_NAMESPACE, self.namespace)
        return in_scope and all(self.labels.get(name) == value for name, value in wanted.items())


@dataclass(frozen=True)
class Outcome:
    """A decision, why, and whose it is."""

    allowed: bool
    reason: str
    policy: str | None = None
    rule: int | None = None


Providers = Mapping[str, Callable[[Asked], bool]]


def decide(
    workload: Workload,
    authentications: Sequence[Policy],
    policies: Sequence[Policy],
    providers: Providers,
    asked: Asked,
) -> Outcome:
    """What must come of `asked`. `providers` are what CUSTOM policies ask."""
    rules = [rule for each in applying(workload, authentications) for rule in each.spec["jwtRules"]]
    fault = token_fault(rules, asked.token) if asked.token else None
    if fault:
        return Outcome(False, fault)
    token = asked.token if rules else None  # where nobody verifies it, it is not looked at
    selected = applying(workload, policies)

    def having(action: str) -> list[Policy]:
        return [policy for policy in selected if policy.spec.get("action", "ALLOW") == action]

    def matching(policy: Policy) -> int | None:
        found = (n for n, rule in enumerate(policy.spec.get("rules", [])) if rule_matches(rule, policy, asked, token))
        return next(found, None)

    consent = None
    for policy in having("CUSTOM"):
        if (rule := matching(policy)) is not None:
            consent = Outcome(True, "rego_allowed", policy.full_name, rule)
            if not providers[policy.spec["provider"]["name"]](asked):
                return Outcome(False, "rego_denied", policy.full_name, rule)
    for policy in having("DENY"):
        if (rule := matching(policy)) is not None:
            return Outcome(False, "deny_rule", policy.full_name, rule)
    for policy in having("ALLOW"):
        if (rule := matching(policy)) is not None:
            return Outcome(True, "allow_rule", policy.full_name, rule)
    if having("ALLOW"):
        return Outcome(False, "no_allow_rule")
    return consent or Outcome(True, "no_allow_policy")


def applying(workload: Workload, policies: Sequence[Policy]) -> list[Policy]:
    """Those that select `workload`, in the order in which they are asked."""
    selected = filter(workload.is_selected, policies)
    return sorted(selected, key=lambda policy: (policy.namespace, policy.name))


def token_fault(rules: list[dict[str, Any]], token: Token) -> str | None:
    """Why `token` is refused; none where it is taken."""
    if not rules or token.fault == "token_malformed":
        return token.fault if rules else None
    rule = next((rule for rule in rules if rule["issuer"] == token.issuer), None)
    if rule is None:
        return "token_issuer"
    if token.fault != "token_signature" and not is_for(rule, token):
        return "token_audience"  # also where it has expired as well
    return token.fault


def is_for(rule: dict[str, Any], token: Token) -> bool:
    accepted = rule.get("audiences")
    return not accepted or any(audience in accepted for audience in token.audiences)


# Rules ----------------------------------------------------------------------------------------------------------------


def rule_matches(rule: dict[str, Any], policy: Policy, asked: Asked, token: Token | None) -> bool:
    def field_matches(name: str, wanted: Values | None, unwanted: Values | None) -> bool:
        values, matches = attribute(name, asked, token, policy.namespace)

        def is_among(patterns: Values) -> bool:
            return any(matches(pattern, value) for pattern in patterns for value in values)

        return (wanted is None or is_among(wanted)) and (unwanted is None or not is_among(unwanted))

    def part_matches(part: dict[str, Values]) -> bool:
        names = {name[3].lower() + name[4:] if name.startswith("not") else name for name in part}
        return all(field_matches(FIELDS[n], part.get(n), part.get(f"not{n[0].upper()}{n[1:]}")) for n in names)

    return (
        ("from" not in rule or any(part_matches(each["source"]) for each in rule["from"]))
        and ("to" not in rule or any(part_matches(each["operation"]) for each in rule["to"]))
        and all(field_matches(each["key"], each.get("values"), each.get("notValues")) for each in rule.get("when", []))
    )


FIELDS = {
    "principals": "source.principal",
    "requestPrincipals": "request.auth.principal",
    "namespaces": "source.namespace",
    "serviceAccounts": "source.serviceAccount",
    "ipBlocks": "source.ip",
    "hosts": "host",
    "ports": "destination.port",
    "methods": "method",
    "paths": "path",
}
"""The fields of a source and an operation, by the attribute that each is about."""


def attribute(name: str, asked: Asked, token: Token | None, namespace: str) -> tuple[Values, Matches]:
    """The values that a request has for an attribute, and how a rule's value (first) matches one (second)."""
    principal = (asked.principal or "").removeprefix("spiffe://")
    istio = re.fullmatch("[^/]+/ns/([^/]+)/sa/([^/]+)", principal)
    claims = token.claims if token else {}
    plain: dict[str, tuple[Values, Matches]] = {
        "source.principal": ([principal] if principal else [], text_matches),
        "source.namespace": ([istio[1]] if istio else [], text_matches),
        "source.serviceAccount": (
            [f"{istio[1]}/{istio[2]}"] if istio else [],
            lambda given, value: value == (given if "/" in given else f"{namespace}/{given}"),
        ),
        "source.ip": ([asked.source_ip], address_matches),
        "destination.ip": ([asked.destination_ip], address_matches),
        "destination.port": ([str(asked.port)], str.__eq__),
        "connection.sni": ([asked.sni] if asked.sni else [], text_matches),
        "method": ([asked.method], text_matches),
        "host": ([asked.host.lower()], lambda given, value: text_matches(given.lower(), value)),
        "path": ([normalized(asked.path)], path_matches),
        "request.auth.principal": (
            [f"{claims['iss']}\n{claims['sub']}"] if claims.get("sub") else [],
            token_principal_matches,
        ),
        "request.auth.audiences": (token.audiences if token else [], text_matches),
        "request.auth.presenter": ([claims["azp"]] if "azp" in claims else [], text_matches),
    }
    if name in plain:
        return plain[name]
    head, *arguments = re.findall(r"[^\[\]]+", name)
    if head == "request.headers":
        values = [value for key, value in asked.headers if key.lower() == arguments[0].lower()]
        return values, lambda given, value: given == "*" or text_matches(given, value)
    assert head == "request.auth.claims", name
    return claim_values(claims, arguments), text_matches


def claim_values(claims: Any, path: Values) -> Values:
    for name in path:
        claims = claims.get(name) if isinstance(claims, dict) else None
    if path in (["scope"], ["permission"]) and isinstance(claims, str):
        return claims.split()
    listed = claims if isinstance(claims, list) else [claims]
    return [value if isinstance(value, str) else str(value).lower() for value in listed if is_scalar(value)]


def is_scalar(value: Any) -> bool:
    return isinstance(value, str | int)


# Values ---------------------------------------------------------------------------------------------------------------


@cache
def expression(pattern: str) -> re.Pattern[str]:
    if pattern == "*":
        return re.compile(".+", re.DOTALL)
    if pattern.startswith("*"):
        return re.compile(".*" + re.escape(pattern[1:]), re.DOTALL)
    if pattern.endswith("*"):
        return re.compile(re.escape(pattern[:-1]) + ".*", re.DOTALL)
    return re.compile(re.escape(pattern))


def text_matches(pattern: str, value: str) -> bool:
    return expression(pattern).fullmatch(value) is not None


def path_matches(pattern: str, value: str) -> bool:
    if "{*}" not in pattern and "{**}" not in pattern:
        return text_matches(pattern, value)
    template = re.escape(pattern).replace(re.escape("{**}"), ".*").replace(re.escape("{*}"), "[^/]+")
    return re.fullmatch(template, value) is not None


def address_matches(block: str, value: str) -> bool:
    return ipaddress.ip_address(value) in ipaddress.ip_network(block, strict=False)


def token_principal_matches(pattern: str, value: str) -> bool:
    """Issuer and subject are matched apart: `pattern` is divided at its last slash."""
    issuer, subject = value.split("\n")
    if pattern == "*":
        return True
    if "/" not in pattern:  # of one of the two nothing is said
        is_suffix = pattern.startswith("*")
        return text_matches(pattern, subject) if is_suffix else pattern.endswith("*") and text_matches(pattern, issuer)
    of_issuer, _, of_subject = pattern.rpartition("/")
    if pattern.startswith("*"):  # so that a star at the subject's end is itself
        return text_matches(of_issuer, issuer) and subject == of_subject
    return issuer == of_issuer and text_matches(of_subject, subject)


# Paths ----------------------------------------------------------------------------------------------------------------


def normalized(path_and_query: str) -> str:
    """The path that is decided about: mode MERGE_SLASHES, as docs/differences.md tells it, without the query."""
    path = path_and_query.split("?")[0].replace("\\", "/")
    if not path.startswith("/"):
        return path
    unescaped = re.sub("%[0-9A-Fa-f]{2}", lambda found: unreserved(found[0]), path)
    kept: list[str] = []
    segments = unescaped.split("/")[1:]
    for segment in segments:
        name = segment.split(";")[0]
        if name == "..":
            del kept[-1:]
        elif name != ".":
            kept.append(segment)
    ends_in_slash = segments[-1].split(";")[0] in ("", ".", "..")
    inner = "/".join(segment for segment in kept if segment)
    return f"/{inner}/" if inner and ends_in_slash else f"/{inner}"


def unreserved(escape: str) -> str:
    character = chr(int(escape[1:], 16))
    return character if re.fullmatch("[A-Za-z0-9._~-]", character) else escape
