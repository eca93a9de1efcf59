"""The engine against a plain evaluator of RequestAuthentication: where tokens are found, by which rule they are taken,
what is required, and what the application gets. It shares no code with compiler or engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jwt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tokens import ISSUER, OTHER_ISSUER, key_set, rsa_key
from support.tokens import jwk as public

Place = tuple[str, str]

NOW = 1_800_000_000
"""The time of the requests of `mesh`, in seconds."""

ISSUERS = (ISSUER, OTHER_ISSUER)
SUBJECTS = ("ada", "eve")
PLACES: list[Place] = [("header", "x-a"), ("header", "x-b"), ("param", "a"), ("param", "b"), ("cookie", "a")]
DEFAULTS: list[Place] = [("header", "authorization"), ("param", "access_token")]
"""The Authorization header stands for itself with its prefix."""


# The reference --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    reason: str
    principal: str | None = None
    user: str | None = None
    removed: frozenset[Place] = field(default_factory=frozenset)


def places_of(rule: dict[str, Any]) -> list[Place]:
    given = [("header", each["name"]) for each in rule.get("fromHeaders", [])]
    given += [("param", name) for name in rule.get("fromParams", [])]
    given += [("cookie", name) for name in rule.get("fromCookies", [])]
    return given or DEFAULTS


def reference(specs: list[dict[str, Any]], request: dict[Place, str]) -> Outcome:
    rules = [(rule, spec.get("require", False)) for spec in specs for rule in spec["jwtRules"]]
    required = any(require for _, require in rules)
    found = {place: token for place, token in request.items() if any(place in places_of(rule) for rule, _ in rules)}
    if len(set(found.values())) > 1:
        return Outcome("token_several")
    if not found:
        return Outcome("token_required" if required else "no_allow_policy")
    (text,) = set(found.values())
    issuer, subject, is_signed = TOKENS[text]
    order = [place for rule, _ in rules for place in places_of(rule)]
    first = min(found, key=order.index)
    for rule, require in rules:
        if rule["issuer"] == issuer and first in places_of(rule) and (require or not required):
            if not is_signed:
                return Outcome("token_signature")
            forwarded = rule.get("forwardOriginalToken", False)
            user = subject if "outputClaimToHeaders" in rule else None
            return Outcome(
                "no_allow_policy", f"{issuer}/{subject}", user, frozenset() if forwarded else frozenset(found)
            )
    return Outcome("token_issuer")


# Rules and requests that often meet -----------------------------------------------------------------------------------


@cache
def token(issuer: str, subject: str, *, is_signed: bool) -> str:
    claims = {"iss": issuer, "sub": subject, "exp": NOW + 3600}
    return jwt.encode(claims, rsa_key("r" if is_signed else "stranger"), "RS256", headers={"kid": "r"})


TOKENS = {
    token(issuer, subject, is_signed=is_signed): (issuer, subject, is_signed)
    for issuer in ISSUERS
    for subject in SUBJECTS
    for is_signed in (True, False)
}
JWKS = key_set(public(rsa_key("r"), "r"))


def rule_of(issuer: str, places: list[Place], *, forward: bool, output: bool) -> dict[str, Any]:
    rule: dict[str, Any] = {"issuer": issuer, "jwks": JWKS, "forwardOriginalToken": forward}
    named = {
        "fromHeaders": [{"name": name} for kind, name in places if kind == "header"],
        "fromParams": [name for kind, name in places if kind == "param"],
        "fromCookies": [name for kind, name in places if kind == "cookie"],
    }
    output_headers = {"outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}]} if output else {}
    return {**rule, **{name: value for name, value in named.items() if value}, **output_headers}


rules = st.builds(
    rule_of,
    st.sampled_from(ISSUERS),
    st.lists(st.sampled_from(PLACES), max_size=2, unique=True),
    forward=st.booleans(),
    output=st.booleans(),
)
specs = st.builds(
    lambda rules, require: {"jwtRules": rules, "require": require},
    st.lists(rules, min_size=1, max_size=2, unique_by=lambda rule: rule["issuer"]),
    st.booleans(),
)
requests = st.dictionaries(st.sampled_from(PLACES + DEFAULTS), st.sampled_from(sorted(TOKENS)), max_size=2)
same = st.builds(dict.fromkeys, st.lists(st.sampled_from(PLACES), max_size=3), st.sampled_from(sorted(TOKENS)))


def engine_fields(request: dict[Place, str]) -> dict[str, Any]:
    prefixes = {"authorization": "Bearer "}
    headers = [(name, prefixes.get(name, "") + text) for (kind, name), text in request.items() if kind == "header"]
    headers += [("cookie", f"{name}={text}; z=1") for (kind, name), text in request.items() if kind == "cookie"]
    query = "&".join(f"{name}={text}" for (kind, name), text in request.items() if kind == "param")
    return {"headers": [*headers, ("x-user", "root")], "path": f"/p?z=1&{query}" if query else "/p"}


def removed_by(decision: Any, request: dict[Place, str]) -> frozenset[Place]:
    """The places from which a decision takes the token off."""
    set_to = dict(decision.request_headers_to_set)
    gone = set()
    for kind, name in request:
        if kind == "header" and name in decision.request_headers_to_remove:
            gone.add((kind, name))
        if kind == "param" and ":path" in set_to and name not in dict(parse_qsl(urlsplit(set_to[":path"]).query)):
            gone.add((kind, name))
        if kind == "cookie" and set_to.get("cookie") == "z=1":
            gone.add((kind, name))
    return frozenset(gone)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(specs, min_size=1, max_size=2), st.lists(st.one_of(requests, same), min_size=1, max_size=6))
def test_the_engine_takes_the_tokens_that_the_reference_takes(
    mesh: Callable[..., Any], policy: Callable[..., str], given_specs: list[Any], asked: list[dict[Place, str]]
) -> None:
    made = mesh(*(policy(spec, "RequestAuthentication", f"r{index}") for index, spec in enumerate(given_specs)))
    reserved = any("outputClaimToHeaders" in rule for spec in given_specs for rule in spec["jwtRules"])
    for request in [*asked, *asked]:  # the second time from memory
        decision = made.decide(**engine_fields(request))
        wanted = reference(given_specs, request)
        assert (decision.reason, decision.token_principal) == (wanted.reason, wanted.principal)
        if not decision.allowed:
            assert decision.status == 401
            challenge = dict(decision.response_headers_to_add)["www-authenticate"]
            assert ("invalid_token" in challenge) == (wanted.reason != "token_required")
            continue
        assert removed_by(decision, request) == wanted.removed
        assert dict(decision.request_headers_to_set).get("x-user") == wanted.user
        assert ("x-user" in decision.request_headers_to_remove) == (reserved and wanted.user is None)
