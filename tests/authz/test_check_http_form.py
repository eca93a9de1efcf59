"""`ext_authz` in its HTTP form: what it cannot carry is unknown, and a policy that reads it denies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jwt
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.tokens import ISSUER, claims, jwk, key_set, rsa_key

from peltast.authz.check.documents import check_revision
from peltast.authz.check.http_form import http_answer, http_question
from peltast.authz.check.service import CheckService

Make = Callable[..., Any]

CATALOG = "spiffe://cluster.local/ns/shop/sa/catalog"
FROM_WEB = {"from": [{"source": {"principals": ["*/sa/web"]}}]}
GOLD = {"when": [{"key": "request.headers[x-tier]", "values": ["gold"]}]}
OPEN = {"to": [{"operation": {"methods": ["GET"], "paths": ["/open"]}}]}


def rego(reads: str, on_error: str = "deny") -> dict[str, Any]:
    return {"entrypoint": "data.p.answer", "onError": on_error, "module": f"package p\nanswer if {reads}"}


def rules(action: str, *rules: Any) -> tuple[dict[str, Any], str]:
    return {"action": action, "rules": list(rules)}, "AuthorizationPolicy"


def asks(module: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [
        ({"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]}, "AuthorizationPolicy"),
        (module, "RegoPolicy"),
    ]


TOLD_TIER = {"x-peltast-allowed-headers": "X-Tier"}


def answer(mesh: Make, policy: Make, policies: Any, headers: dict[str, str], target: str) -> CheckResponse:
    service = CheckService()
    written = [policy(spec, kind=kind) for spec, kind in policies]
    service.take(check_revision(mesh(*written).revision))
    return service.check(http_question("GET", target, [("host", "h"), *headers.items()], CATALOG), CATALOG)


@pytest.mark.parametrize(
    ("policies", "headers", "wanted"),
    [
        ([rules("ALLOW", OPEN)], {}, "allow_rule"),
        ([rules("ALLOW", {"to": [{"operation": {"paths": ["/other"]}}]})], {}, "no_allow_rule"),
        # Who calls is unknown: no ALLOW holds by it, and no DENY is evaded for lack of it.
        ([rules("ALLOW", FROM_WEB)], {}, "no_allow_rule"),
        ([rules("ALLOW", FROM_WEB, OPEN)], {}, "allow_rule"),
        ([rules("DENY", FROM_WEB)], {}, "deny_rule"),
        ([rules("DENY", {**FROM_WEB, "to": [{"operation": {"paths": ["/admin"]}}]})], {}, "no_allow_policy"),
        ([rules("DENY", {"from": [{"source": {"notPrincipals": ["*/sa/web"]}}]})], {}, "deny_rule"),
        ([rules("DENY", {"from": [{"source": {"remoteIpBlocks": ["10.0.0.0/8"]}}]})], {}, "deny_rule"),
        ([rules("DENY", {"to": [{"operation": {"ports": ["80"]}}]})], {}, "deny_rule"),
        # Headers: known if they are told of, be they there or not.
        ([rules("ALLOW", GOLD)], {**TOLD_TIER, "x-tier": "gold"}, "allow_rule"),
        ([rules("ALLOW", GOLD)], {"x-tier": "gold"}, "no_allow_rule"),
        ([rules("DENY", GOLD)], {}, "deny_rule"),
        ([rules("DENY", GOLD)], TOLD_TIER, "no_allow_policy"),
        ([rules("DENY", GOLD)], {"x-peltast-allowed-headers": "x-other"}, "deny_rule"),
        # Rego: what it reads must be known, whatever `onError` says.
        (asks(rego('input.parsed_path[0] == "open"')), {}, "rego_allowed"),
        (asks(rego('input.attributes.request.http.headers["x-tier"] == "gold"')), {}, "attribute_unknown"),
        (asks(rego("not input.attributes.source.principal", "allow")), {}, "attribute_unknown"),
        (
            asks(rego("not input.attributes.request.http.headers[input.parsed_path[0]]", "allow")),
            {},
            "attribute_unknown",
        ),
        (
            asks(rego('input.attributes.request.http.headers["x-tier"] == "gold"')),
            {**TOLD_TIER, "x-tier": "gold"},
            "rego_allowed",
        ),
    ],
)
def test_what_is_unknown_never_opens(mesh: Make, policy: Make, policies: Any, headers: Any, wanted: str) -> None:
    response = answer(mesh, policy, policies, headers, "/ext_authz/open")
    assert response.dynamic_metadata["peltast.dev"]["reason"] == wanted
    status, _, _ = http_answer(response)
    allowed = wanted in ("allow_rule", "rego_allowed", "no_allow_policy")
    assert (status == 200, response.status.code == 0) == (allowed, allowed)


def token_rule(**places: Any) -> tuple[dict[str, Any], str]:
    keys = key_set(jwk(rsa_key("r"), "r"))
    return {"jwtRules": [{"issuer": ISSUER, "jwks": keys, **places}]}, "RequestAuthentication"


@pytest.mark.parametrize(
    ("places", "headers", "wanted"),
    [
        ({}, {}, "no_allow_policy"),
        ({"fromHeaders": [{"name": "x-token"}]}, {}, "attribute_unknown"),
        ({"fromHeaders": [{"name": "x-token"}]}, {"x-peltast-allowed-headers": "x-token"}, "no_allow_policy"),
        ({"fromCookies": ["session"]}, {}, "attribute_unknown"),
        ({"fromCookies": ["session"]}, {"x-peltast-allowed-headers": "cookie"}, "no_allow_policy"),
        ({"outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}]}, {}, "attribute_unknown"),
    ],
)
def test_where_tokens_stand_must_be_known(mesh: Make, policy: Make, places: Any, headers: Any, wanted: str) -> None:
    response = answer(mesh, policy, [token_rule(**places)], headers, "/ext_authz/")
    assert response.dynamic_metadata["peltast.dev"]["reason"] == wanted


def test_a_token_in_its_usual_place_is_verified(mesh: Make, policy: Make) -> None:
    token = jwt.encode({**claims(0), "exp": 2**40}, rsa_key("r"), "RS256", headers={"kid": "r"})
    policies = [token_rule(), rules("ALLOW", {"from": [{"source": {"requestPrincipals": ["*"]}}]})]
    for given, wanted in ((f"Bearer {token}", "allow_rule"), ("Bearer x", "token_malformed")):
        response = answer(mesh, policy, policies, {"authorization": given}, "/ext_authz/")
        assert response.dynamic_metadata["peltast.dev"]["reason"] == wanted


def test_an_answer_has_what_rego_wants_done(mesh: Make, policy: Make) -> None:
    allows = {
        "entrypoint": "data.p.answer",
        "module": """package p
answer := {"allowed": true, "headers": {"x-tier": "gold"}, "request_headers_to_remove": ["x-a", "x-b"],
  "response_headers_to_add": {"x-answered": "yes"}} if input.parsed_path[0] == "open"
else := {"allowed": false, "http_status": 402, "body": "pay", "headers": {"x-price": "1"}}""",
    }
    allowed = answer(mesh, policy, asks(allows), {}, "/ext_authz/open")
    removed = ("x-envoy-auth-headers-to-remove", "x-a,x-b")
    assert http_answer(allowed) == (200, [("x-tier", "gold"), ("x-answered", "yes"), removed], b"")
    denied = answer(mesh, policy, asks(allows), {}, "/ext_authz/shut")
    assert http_answer(denied) == (402, [("x-price", "1")], b"pay")
