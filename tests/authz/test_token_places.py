"""RequestAuthentication beyond the signature: where tokens are looked for, what is required, what applications get."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from support.tokens import ISSUER, OTHER_ISSUER, b64, bearer, claims, jwk, key_set, rsa_key

Make = Callable[..., Any]
Pairs = list[tuple[str, str]]

JWKS = key_set(jwk(rsa_key("r"), "r"))
REALM = "spiffe://cluster.local/ns/shop/sa/catalog"


def token(now: int, **more: Any) -> str:
    return jwt.encode(claims(now, **more), rsa_key("r"), "RS256", headers={"kid": "r"})


@pytest.fixture(scope="module")
def rules(mesh: Make, policy: Make) -> Make:
    """Makes a mesh with one RequestAuthentication of these rules, each for an issuer of its own, and policies."""

    def make(*rules: dict[str, Any], policies: tuple[str, ...] = (), **spec: Any) -> Any:
        issuers = (ISSUER, OTHER_ISSUER)
        jwt_rules = [{"issuer": issuer, "jwks": JWKS, **rule} for issuer, rule in zip(issuers, rules, strict=False)]
        return mesh(policy({"jwtRules": jwt_rules, **spec}, kind="RequestAuthentication"), *policies)

    return make


# Places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "headers", "path", "reason"),
    [
        pytest.param({}, [("authorization", "Bearer @")], "/", None, id="Authorization by default"),
        pytest.param({}, [], "/?access_token=@", None, id="access_token by default"),
        pytest.param({}, [], "/a?b=c&access_token=@", None, id="access_token among others"),
        pytest.param({}, [], "/?access%5Ftoken=@", None, id="access_token, encoded"),
        pytest.param({}, [("x-jwt", "@")], "/", "nobody", id="another header"),
        pytest.param({}, [("cookie", "access_token=@")], "/", "nobody", id="a cookie"),
        pytest.param({}, [], "/?access_token=x", "token_malformed", id="a bad access_token"),
        pytest.param({}, [], "/?access_token=", "token_malformed", id="an empty access_token"),
        pytest.param({"fromHeaders": [{"name": "X-Jwt"}]}, [("x-jwt", "@")], "/", None, id="header"),
        pytest.param({"fromHeaders": [{"name": "X-Jwt"}]}, [("x-jwt", "")], "/", "token_malformed", id="empty header"),
        pytest.param(
            {"fromHeaders": [{"name": "X-Jwt"}]}, [("x-jwt", "@"), ("x-jwt", "x")], "/", "token_malformed", id="twice"
        ),
        pytest.param(
            {"fromHeaders": [{"name": "X-Jwt"}]}, [("authorization", "Bearer @")], "/", "nobody", id="no default then"
        ),
        pytest.param({"fromHeaders": [{"name": "x-jwt"}]}, [], "/?access_token=@", "nobody", id="nor the parameter"),
        pytest.param(
            {"fromHeaders": [{"name": "x-jwt", "prefix": "JWT "}]}, [("x-jwt", "jwt @")], "/", None, id="prefix"
        ),
        pytest.param(
            {"fromHeaders": [{"name": "x-jwt", "prefix": "JWT "}]}, [("x-jwt", "@")], "/", "nobody", id="no prefix"
        ),
        pytest.param(
            {"fromHeaders": [{"name": "x-a"}, {"name": "x-b"}]}, [("x-b", "@")], "/", None, id="one of two headers"
        ),
        pytest.param({"fromParams": ["jwt"]}, [], "/?jwt=@", None, id="parameter"),
        pytest.param({"fromParams": ["jwt"]}, [], "/?access_token=@", "nobody", id="another parameter"),
        pytest.param({"fromParams": ["jwt"]}, [], "/?jwt=@&jwt=@", None, id="the same parameter twice"),
        pytest.param({"fromParams": ["jwt"]}, [], "/?jwt=@&jwt=x", "token_several", id="two values of a parameter"),
        pytest.param({"fromCookies": ["jwt"]}, [("cookie", "a=b; jwt=@")], "/", None, id="cookie"),
        pytest.param({"fromCookies": ["jwt"]}, [("cookie", 'jwt="@"')], "/", None, id="cookie in quotes"),
        pytest.param({"fromCookies": ["jwt"]}, [("cookie", "a=b"), ("cookie", "jwt=@")], "/", None, id="cookie lines"),
        pytest.param({"fromCookies": ["jwt"]}, [("cookie", "JWT=@")], "/", "nobody", id="cookies have a case"),
        pytest.param(
            {"fromCookies": ["jwt"]}, [("cookie", "jwt=@; jwt=x")], "/", "token_several", id="a cookie tossed in"
        ),
        pytest.param(
            {"fromCookies": ["a"], "fromParams": ["a"]}, [("cookie", "a=@")], "/?a=@", None, id="one token, two places"
        ),
        pytest.param(
            {"fromCookies": ["a"], "fromParams": ["a"]}, [("cookie", "a=@")], "/?a=x", "token_several", id="two tokens"
        ),
    ],
)
def test_a_token_is_looked_for_where_its_rule_says(
    rules: Make, now: int, rule: dict[str, Any], headers: Pairs, path: str, reason: str | None
) -> None:
    text = token(now)
    filled = [(name, value.replace("@", text)) for name, value in headers]
    decision = rules(rule).decide(headers=filled, path=path.replace("@", text))
    principal = f"{ISSUER}/ada" if reason is None else None
    wanted = "no_allow_policy" if reason in (None, "nobody") else reason
    assert (decision.token_principal, decision.reason) == (principal, wanted)


def test_each_rule_has_places_of_its_own(rules: Make, now: int) -> None:
    made = rules({"fromHeaders": [{"name": "x-one"}]}, {"fromHeaders": [{"name": "x-two"}]})
    one, two = token(now), token(now, iss=OTHER_ISSUER)
    for headers, principal, reason in [
        ([("x-one", one)], f"{ISSUER}/ada", "no_allow_policy"),
        ([("x-two", two)], f"{OTHER_ISSUER}/ada", "no_allow_policy"),
        ([("x-two", one)], None, "token_issuer"),
        ([("x-one", two)], None, "token_issuer"),
        ([("x-one", one), ("x-two", two)], None, "token_several"),
        ([("x-one", one)], f"{ISSUER}/ada", "no_allow_policy"),
    ]:
        decision = made.decide(headers=headers)
        assert (decision.token_principal, decision.reason) == (principal, reason), headers


def test_a_token_that_one_of_two_resources_takes_is_taken(mesh: Make, policy: Make, now: int) -> None:
    specs = [{"jwtRules": [{"issuer": ISSUER, "audiences": [name], "jwks": JWKS}]} for name in ("bank", "shop")]
    made = mesh(*(policy(spec, kind="RequestAuthentication", name=f"r{n}") for n, spec in enumerate(specs)))
    assert made.decide(**bearer(token(now))).token_principal == f"{ISSUER}/ada"
    assert made.decide(**bearer(token(now, aud="x"))).reason == "token_audience"


@pytest.mark.parametrize(
    ("rule", "headers", "path", "to_set", "to_remove"),
    [
        ({}, [("authorization", "Bearer @")], "/a//b?x=y", [], ["authorization"]),
        ({}, [], "/a//b?access_token=@&x=%20", [(":path", "/a/b?x=%20")], []),
        ({}, [("authorization", "Bearer @")], "/?access_token=@", [(":path", "/")], ["authorization"]),
        ({"fromHeaders": [{"name": "x-a"}]}, [("x-a", "@"), ("authorization", "Basic x")], "/", [], ["x-a"]),
        ({"fromCookies": ["c"]}, [("cookie", "a=b; c=@; d=e")], "/", [("cookie", "a=b; d=e")], []),
        ({"fromCookies": ["c"]}, [("cookie", "c=@")], "/", [], ["cookie"]),
        ({"fromParams": ["a", "b"]}, [], "/?a=@&b=@&c=1", [(":path", "/?c=1")], []),
        ({"forwardOriginalToken": True}, [("authorization", "Bearer @")], "/?access_token=@", [], []),
    ],
)
def test_a_token_is_taken_off_wherever_it_stands(
    rules: Make, now: int, rule: dict[str, Any], headers: Pairs, path: str, to_set: Pairs, to_remove: list[str]
) -> None:
    text = token(now)
    filled = [(name, value.replace("@", text)) for name, value in headers]
    decision = rules(rule).decide(headers=filled, path=path.replace("@", text))
    assert decision.allowed
    assert (decision.request_headers_to_set, decision.request_headers_to_remove) == (to_set, to_remove)
    assert (decision.policy_headers_to_set, decision.policy_headers_to_remove) == ([], [])


# Requiring a token ----------------------------------------------------------------------------------------------------


def test_without_a_required_token_a_request_is_refused(rules: Make, now: int) -> None:
    made = rules({}, require=True)
    missing, bad, good = made.decide(), made.decide(**bearer("x")), made.decide(**bearer(token(now)))
    assert (missing.status, missing.reason) == (401, "token_required")
    assert missing.response_headers_to_add == [("www-authenticate", f'Bearer realm="{REALM}"')]
    assert (bad.status, bad.reason) == (401, "token_malformed")
    assert bad.response_headers_to_add == [("www-authenticate", f'Bearer realm="{REALM}", error="invalid_token"')]
    assert good.allowed
    assert good.response_headers_to_add == []


def test_a_policy_cannot_allow_what_lacks_a_required_token(rules: Make, policy: Make) -> None:
    assert rules({}, policies=(policy({"rules": [{}]}),), require=True).decide().reason == "token_required"


def test_only_a_token_by_the_rules_that_require_one_will_do(mesh: Make, policy: Make, now: int) -> None:
    one = {"jwtRules": [{"issuer": ISSUER, "jwks": JWKS}], "require": True}
    two = {"jwtRules": [{"issuer": OTHER_ISSUER, "jwks": JWKS}]}
    made = mesh(*(policy(spec, kind="RequestAuthentication", name=f"r{n}") for n, spec in enumerate((one, two))))
    assert made.decide(**bearer(token(now))).allowed
    assert made.decide(**bearer(token(now, iss=OTHER_ISSUER))).reason == "token_issuer"


def test_workloads_that_are_not_selected_need_no_token(mesh: Make, policy: Make) -> None:
    spec = {
        "selector": {"matchLabels": {"app": "web"}},
        "jwtRules": [{"issuer": ISSUER, "jwks": JWKS}],
        "require": True,
    }
    made = policy(spec, kind="RequestAuthentication", namespace="istio-system")
    assert mesh(made).decide().allowed
    assert mesh(made, workload="front/web").decide().reason == "token_required"


def test_a_token_for_ever_is_taken_only_where_its_rule_says_so(rules: Make, now: int) -> None:
    for_ever = bearer(token(now, exp=None))
    assert rules({}).decide(**for_ever).reason == "token_without_expiry"
    made = rules({"allowMissingExpiry": True})
    assert made.decide(**for_ever, now_ms=(now + 10**9) * 1000).allowed
    assert made.decide(**bearer(token(now, exp=now - 60))).reason == "token_expired"


# What applications get ------------------------------------------------------------------------------------------------

OUTPUTS = {
    "outputPayloadToHeader": "X-Payload",
    "outputClaimToHeaders": [
        {"header": "X-User", "claim": "sub"},
        {"header": "X-Level", "claim": "realm.level"},
        {"header": "X-Groups", "claim": "groups"},
    ],
}
SPOOFED = [
    ("x-user", "root"),
    ("X-User", "admin"),
    ("x_user", "root"),
    ("x-payload", "e30"),
    ("x-groups", "all"),
    ("x-other", "1"),
]


def test_claims_become_headers(rules: Make, now: int) -> None:
    text = token(now, realm={"level": 3}, groups=["a"])
    decision = rules(OUTPUTS).decide(**bearer(text))
    payload = text.split(".")[1]
    assert decision.request_headers_to_set == [("x-payload", payload), ("x-user", "ada"), ("x-level", "3")]
    assert decision.request_headers_to_remove == ["authorization"]


def test_what_callers_claim_in_those_headers_is_taken_off(rules: Make, now: int) -> None:
    made = rules(OUTPUTS)
    without = made.decide(headers=SPOOFED)
    assert without.allowed
    assert (without.request_headers_to_set, without.request_headers_to_remove) == (
        [],
        ["x-groups", "x-payload", "x-user", "x_user"],
    )
    text = token(now)
    decision = made.decide(headers=[*SPOOFED, ("authorization", f"Bearer {text}")])
    assert dict(decision.request_headers_to_set) == {"x-payload": text.split(".")[1], "x-user": "ada"}
    assert decision.request_headers_to_remove == ["authorization", "x-groups", "x_user"]


def test_policies_see_those_headers_as_the_application_will(rules: Make, policy: Make, now: int) -> None:
    is_ada = {"when": [{"key": "request.headers[x-user]", "values": ["ada"]}]}
    made = rules(OUTPUTS, policies=(policy({"rules": [is_ada]}),))
    claimed = ("x-user", "ada")
    for _ in range(2):  # the second time from memory
        assert made.decide(headers=[claimed]).reason == "no_allow_rule"
        assert made.decide(**bearer(token(now))).reason == "allow_rule"
        eve = ("authorization", f"Bearer {token(now, sub='eve')}")
        assert made.decide(headers=[claimed, eve]).reason == "no_allow_rule"


def test_memory_does_not_carry_one_tokens_headers_to_another(rules: Make, now: int) -> None:
    made = rules(OUTPUTS)
    assert ("x-user", "ada") in made.decide(**bearer(token(now))).request_headers_to_set
    decision = made.decide(**bearer(token(now, sub="eve")))
    assert decision.decided_by == "cache"
    assert ("x-user", "eve") in decision.request_headers_to_set


REGO = {
    "entrypoint": "data.p.answer",
    "module": 'package p\nimport rego.v1\nanswer := {"allowed": true, "headers": {"x-user": '
    'concat("", ["rego:", input.attributes.request.http.headers["x-user"]])}, '
    '"request_headers_to_remove": ["x-level"]}',
}


def test_a_rego_policy_reads_and_overrides_those_headers(rules: Make, policy: Make, now: int) -> None:
    asks = policy({"action": "CUSTOM", "provider": {"name": "rego"}, "rules": [{}]})
    made = rules(OUTPUTS, policies=(asks, policy(REGO, kind="RegoPolicy", name="rego")))
    headers = [("x-user", "root"), ("authorization", f"Bearer {token(now, realm={'level': 3})}")]
    decision = made.decide(headers=headers)
    assert dict(decision.request_headers_to_set)["x-user"] == "rego:ada"
    assert "x-level" not in dict(decision.request_headers_to_set)
    assert set(decision.request_headers_to_remove) == {"authorization", "x-level"}
    assert decision.policy_headers_to_set == [("x-user", "rego:ada")]
    assert decision.policy_headers_to_remove == ["x-level"]


def test_claims_of_words_are_lists(rules: Make, policy: Make, now: int) -> None:
    def allowed(key: str, value: str) -> bool:
        rule = {"when": [{"key": f"request.auth.claims[{key}]", "values": [value]}]}
        made = rules({"spaceDelimitedClaims": ["roles"]}, policies=(policy({"rules": [rule]}),))
        words = {"roles": " reader  writer", "scope": "a b", "permission": "c d", "other": "e f"}
        return bool(made.decide(**bearer(token(now, **words))).allowed)

    table = [("roles", "writer"), ("roles", "reader"), ("scope", "b"), ("permission", "c"), ("other", "e f")]
    assert all(allowed(*row) for row in table)
    assert not any(allowed(*row) for row in [("roles", "reader  writer"), ("scope", "a b"), ("other", "f")])


def test_headers_tell_claims_of_words_as_they_were_written(rules: Make, now: int) -> None:
    made = rules({"outputClaimToHeaders": [{"header": "x-scope", "claim": "scope"}]})
    assert ("x-scope", "a b") in made.decide(**bearer(token(now, scope="a b"))).request_headers_to_set


def test_the_payload_is_told_to_the_byte(rules: Make, now: int) -> None:
    text = token(now, name="Ω" * 20)
    (value,) = [
        value for name, value in rules(OUTPUTS).decide(**bearer(text)).request_headers_to_set if name == "x-payload"
    ]
    assert value == b64(json.dumps(claims(now, name="Ω" * 20), separators=(",", ":")).encode())
