"""The same policies for Envoy's own filters, `jwt_authn` and `rbac`, as Istio gives them to it.

https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/rbac/v3/rbac.proto

Where Istio's regular expressions are looser than its reference (namespaces), they are written by the reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from envoy.extensions.path.match.uri_template.v3.uri_template_match_pb2 import UriTemplateMatchConfig
from support.generated import AUTHENTICATIONS, WORKLOAD, PolicySet
from support.reference import Asked, Policy, applying

Json = dict[str, Any]

PORTS = {8080: 8444, 9090: 9444}
"""The port at which these filters listen for each of the application's."""

CLAIMS = "envoy.filters.http.jwt_authn"
NO_RULE = {"any": True}
_TEMPLATE_TYPE = f"type.googleapis.com/{UriTemplateMatchConfig.DESCRIPTOR.full_name}"


class NotExpressible(Exception):
    """RBAC has no word for it."""


def filters_of(policies: PolicySet) -> tuple[Json, Json]:
    """The rules of the DENY filter and of the ALLOW filter; empty where a filter lets everything pass.

    Raises:
        NotExpressible: see there.
    """
    selected = applying(WORKLOAD, policies.policies)
    if any(policy.spec["action"] == "CUSTOM" for policy in selected):
        raise NotExpressible("CUSTOM")
    deny = [policy for policy in selected if policy.spec["action"] == "DENY"]
    allow = [policy for policy in selected if policy.spec["action"] == "ALLOW"]
    return _filter("DENY", deny), _filter("ALLOW", allow)


def is_comparable(asked: Asked) -> bool:
    """Whether RBAC sees `asked` as we do: it joins the values of a header that is given twice."""
    names = [name.lower() for name, _ in asked.headers]
    return len(set(names)) == len(names)


def _filter(action: str, policies: Sequence[Policy]) -> Json:
    if not policies:
        return {}
    named = {
        f"{policy.full_name}[{index}]": _rule(rule, policy.namespace)
        for policy in policies
        for index, rule in enumerate(policy.spec["rules"])
    }
    return {"rules": {"action": action, "policies": named}}


def _rule(rule: Json, namespace: str) -> Json:
    sources = [_all(_fields(each["source"], SOURCE, namespace), "ids") for each in rule.get("from", [])]
    operations = [_all(_fields(each["operation"], OPERATION, namespace), "rules") for each in rule.get("to", [])]
    conditions = [(each["key"].split("[")[0], each) for each in rule.get("when", [])]
    of_caller = [_condition(each, SOURCE_KEYS[key], namespace, "id") for key, each in conditions if key in SOURCE_KEYS]
    of_target = [
        _condition(each, TARGET_KEYS[key], namespace, "rule") for key, each in conditions if key in TARGET_KEYS
    ]
    return {
        "principals": [_all([*_any(sources, "ids"), *of_caller], "ids")],
        "permissions": [_all([*_any(operations, "rules"), *of_target], "rules")],
    }


def _fields(part: Json, fields: dict[str, Any], namespace: str) -> list[Json]:
    made = []
    for name, values in part.items():
        negated = name.startswith("not")
        match = fields[name[3].lower() + name[4:] if negated else name]
        made.append(_matching(values, match, namespace, "id" if fields is SOURCE else "rule", negated=negated))
    return made


def _condition(condition: Json, match: Any, namespace: str, kind: str) -> Json:
    def keyed(value: str, namespace: str) -> Json:
        found: Json = match(value, namespace, re.findall(r"\[([^\]]+)\]", condition["key"]))
        return found

    given = [(condition[name], name == "notValues") for name in ("values", "notValues") if name in condition]
    return _all([_matching(values, keyed, namespace, kind, negated=negated) for values, negated in given], f"{kind}s")


def _matching(
    values: list[str], match: Callable[[str, str], Json], namespace: str, kind: str, *, negated: bool
) -> Json:
    (one,) = _any([match(value, namespace) for value in values], f"{kind}s")
    return {f"not_{kind}": one} if negated else one


def _any(alternatives: list[Json], kind: str) -> list[Json]:
    return [{f"or_{kind}": {kind: alternatives}}] if alternatives else []


def _all(parts: list[Json], kind: str) -> Json:
    return {f"and_{kind}": {kind: parts}} if parts else NO_RULE


# Values ---------------------------------------------------------------------------------------------------------------


def _text(value: str, *, ignore_case: bool = False) -> Json:
    case = {"ignore_case": True} if ignore_case else {}
    if value == "*":
        return _regex(".+")
    if value.startswith("*"):
        return {"suffix": value[1:], **case}
    if value.endswith("*"):
        return {"prefix": value[:-1], **case}
    return {"exact": value, **case}


def _regex(regex: str) -> Json:
    return {"safe_regex": {"regex": regex}}


def _within(value: str) -> str:
    """A value with a star at an end, as a regular expression for a part of a SPIFFE ID."""
    return ".+" if value == "*" else "[^/]*".join(re.escape(part) for part in value.split("*"))


def _principal(value: str, *_: Any) -> Json:
    if value.startswith("*"):
        return _authenticated(_regex("spiffe://.+" if value == "*" else f"spiffe://.*{re.escape(value[1:])}"))
    return _authenticated(_text(f"spiffe://{value}"))


def _authenticated(matcher: Json) -> Json:
    return {"authenticated": {"principal_name": matcher}}


def _namespace(value: str, *_: Any) -> Json:
    return _authenticated(_regex(f"spiffe://[^/]+/ns/{_within(value)}/sa/[^/]+"))


def _service_account(value: str, namespace: str, *_: Any) -> Json:
    where, _slash, account = value.rpartition("/")
    return _authenticated(_regex(f"spiffe://[^/]+/ns/{where or namespace}/sa/{account}"))


def _token_principal(value: str, *_: Any) -> Json:
    issuer, slash, subject = value.rpartition("/")
    if value.startswith("*"):
        of_issuer, of_subject = (_text(issuer), {"exact": subject}) if slash else (_text("*"), _text(value))
    elif slash:
        of_issuer, of_subject = {"exact": issuer}, _text(subject)
    else:
        of_issuer, of_subject = _text(value), _text("*") if value.endswith("*") else {"exact": ""}
    claims = [_claim(["iss"], {"string_match": of_issuer}), _claim(["sub"], {"string_match": of_subject})]
    return {"and_ids": {"ids": claims}}


def _claim(path: Iterable[str], value: Json) -> Json:
    keys = [{"key": key} for key in ("payload", *path)]
    return {"metadata": {"filter": CLAIMS, "path": keys, "value": value}}


def _claim_text(path: list[str], value: str) -> Json:
    """A claim that is a text or a list of texts."""
    if path == ["level"] or value == "3":
        raise NotExpressible("claims that are numbers")
    one = {"string_match": _text(value)}
    return _claim(path, {"or_match": {"value_matchers": [one, {"list_match": {"one_of": one}}]}})


def _header(name: str, value: str, *, ignore_case: bool = False) -> Json:
    match = {"present_match": True} if value == "*" else {"string_match": _text(value, ignore_case=ignore_case)}
    return {"header": {"name": name, **match}}


def _path(value: str, *_: Any) -> Json:
    if "{*}" not in value and "{**}" not in value:
        return {"url_path": {"path": _text(value)}}
    template = {"@type": _TEMPLATE_TYPE, "path_template": value.replace("{**}", "**").replace("{*}", "*")}
    return {"uri_template": {"name": "template", "typed_config": template}}


def _block(value: str) -> Json:
    address, slash, length = value.partition("/")
    return {"address_prefix": address, "prefix_len": int(length) if slash else 32}


def _port(value: str, *_: Any) -> Json:
    return {"destination_port": PORTS.get(int(value), 1)}  # a port of the sidecar itself is none of an application


SOURCE = {
    "principals": _principal,
    "requestPrincipals": _token_principal,
    "namespaces": _namespace,
    "serviceAccounts": _service_account,
    "ipBlocks": lambda value, *_: {"direct_remote_ip": _block(value)},
}
OPERATION = {
    "hosts": lambda value, *_: _header(":authority", value, ignore_case=True),
    "ports": _port,
    "methods": lambda value, *_: _header(":method", value),
    "paths": _path,
}
SOURCE_KEYS = {
    "source.ip": SOURCE["ipBlocks"],
    "source.principal": _principal,
    "source.namespace": _namespace,
    "source.serviceAccount": _service_account,
    "request.headers": lambda value, _, key: _header(key[0], value),
    "request.auth.principal": _token_principal,
    "request.auth.audiences": lambda value, *_: _claim_text(["aud"], value),
    "request.auth.presenter": lambda value, *_: _claim_text(["azp"], value),
    "request.auth.claims": lambda value, _, path: _claim_text(path, value),
}
TARGET_KEYS = {
    "destination.ip": lambda value, *_: {"destination_ip": _block(value)},
    "destination.port": _port,
    "connection.sni": lambda value, *_: {"requested_server_name": _text(value)},
}


# Tokens ---------------------------------------------------------------------------------------------------------------


def jwt_authn() -> Json:
    """The configuration of `jwt_authn` for every choice of rules for tokens; a route names one of them."""
    providers: Json = {}
    requirements: Json = {}
    for number, rules in enumerate(AUTHENTICATIONS):
        if not rules:
            continue
        names = [f"{number}-{index}" for index in range(len(rules))]
        providers |= {name: _provider(rule) for name, rule in zip(names, rules, strict=True)}
        wanted = [*({"provider_name": name} for name in names), {"allow_missing": {}}]
        requirements[str(number)] = {"requires_any": {"requirements": wanted}}
    return {"providers": providers, "requirement_map": requirements}


def _provider(rule: Json) -> Json:
    return {
        "issuer": rule["issuer"],
        "audiences": rule.get("audiences", []),
        "local_jwks": {"inline_string": rule["jwks"]},
        "forward": True,
        "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "permission"]},
    }


def requirement(policies: PolicySet) -> Json:
    """What a route of `policies` asks of `jwt_authn`."""
    return {"requirement_name": str(policies.authentication)} if policies.rules else {"disabled": True}
