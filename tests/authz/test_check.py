"""What the check service answers: to any Envoy all that is to be done, to a sidecar of ours what policies want."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jwt
import pytest
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from support.tokens import ISSUER, claims, jwk, key_set, rsa_key

from peltast.authz.check.documents import check_revision
from peltast.authz.check.service import CheckService

Make = Callable[..., Any]

CATALOG = "spiffe://cluster.local/ns/shop/sa/catalog"
REGO = {
    "entrypoint": "data.p.answer",
    "module": 'package p\nimport rego.v1\nanswer := {"allowed": true, "headers": {"x-tier": "gold"}}',
}


@pytest.fixture(scope="module")
def service(mesh: Make, policy: Make) -> CheckService:
    rule = {
        "issuer": ISSUER,
        "jwks": key_set(jwk(rsa_key("r"), "r")),
        "outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}],
    }
    made = mesh(
        policy({"jwtRules": [rule]}, kind="RequestAuthentication"),
        policy({"action": "CUSTOM", "provider": {"name": "rego"}, "rules": [{}]}),
        policy(REGO, kind="RegoPolicy", name="rego"),
    )
    service = CheckService()
    service.take(check_revision(made.revision))
    return service


def request(token: str, **headers: str) -> CheckRequest:
    http = AttributeContext.HttpRequest(
        method="GET", host="h", path="/", headers={"authorization": f"Bearer {token}", **headers}
    )
    destination = AttributeContext.Peer(principal=CATALOG)
    attributes = AttributeContext(destination=destination, request=AttributeContext.Request(http=http))
    return CheckRequest(attributes=attributes)


def done(response: CheckResponse) -> tuple[dict[str, str], list[str]]:
    ok = response.ok_response
    return {option.header.key: option.header.value for option in ok.headers}, list(ok.headers_to_remove)


@pytest.mark.parametrize(
    ("sidecar", "wanted"),
    [(False, ({"x-user": "ada", "x-tier": "gold"}, ["authorization"])), (True, ({"x-tier": "gold"}, []))],
)
def test_what_a_token_does_to_headers_is_told_to_those_who_do_not_know(
    service: CheckService, wanted: tuple[dict[str, str], list[str]], *, sidecar: bool
) -> None:
    token = jwt.encode({**claims(0), "exp": 2**40}, rsa_key("r"), "RS256", headers={"kid": "r"})
    response = service.check(request(token, **{"x-user": "root"}), CATALOG, sidecar=sidecar)
    assert response.status.code == 0
    assert done(response) == wanted


def test_a_refused_token_is_challenged(service: CheckService) -> None:
    denied = service.check(request("x"), CATALOG).denied_response
    assert denied.status.code == 401
    challenges = [option.header.value for option in denied.headers if option.header.key == "www-authenticate"]
    assert challenges == [f'Bearer realm="{CATALOG}", error="invalid_token"']
