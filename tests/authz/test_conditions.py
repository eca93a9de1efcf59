"""Every key of a ``when``, against what Istio documents and does; where Peltast differs, docs/differences.md says so.

Sources:

* ``conditions``: https://istio.io/latest/docs/reference/config/security/conditions/
* ``generator``: istio/istio, pilot/pkg/security/authz/model/generator.go
* ``util``: istio/istio, pilot/pkg/security/authz/model/util.go (nested claims, JWT matchers)
* ``matcher``: istio/istio, pilot/pkg/security/authz/matcher (strings and headers)
* ``security``: istio/istio, pkg/config/security/security.go (what validation takes)
* ``ours``: it differs, and is a row of docs/differences.md
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.issuer import Issuer

from peltast.policies.kinds.authorization import CONDITION_KEYS

DIFFERENCES = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
ISSUER = Issuer("https://accounts.example")
CLAIMS = {
    "azp": "front.example",
    "groups": ["a", "b c", 7],
    "email": "ada@foo.com",
    "scope": "read write",
    "permission": ["read", "write all"],
    "level": 3,
    "ratio": 1.5,
    "admin": True,
    "none": None,
    "empty": "",
    "no-groups": [],
    "lists": [["x"]],
    "realm": {"roles": ["owner"], "name": "r", "scope": "a b", "in.ner": {"x": "y"}},
    "https://x.example/roles": ["dotted"],
}
HEADERS = [("user-agent", "Mozilla/5.0"), ("x-empty", ""), ("x-twice", "one"), ("x-twice", "two")]

TABLE: list[tuple[str, str, str, bool]] = [
    ("conditions", "request.headers[User-Agent]", "Mozilla/*", True),
    ("conditions", "request.headers[User-Agent]", "mozilla/*", False),
    ("matcher", "request.headers[User-Agent]", "*/5.0", True),
    ("matcher", "request.headers[User-Agent]", "Moz*5.0", False),
    ("matcher", "request.headers[User-Agent]", "*", True),
    ("matcher", "request.headers[x-empty]", "*", True),
    ("matcher", "request.headers[x-absent]", "*", False),
    ("ours", "request.headers[x-twice]", "two", True),
    ("ours", "request.headers[x-twice]", "one,two", False),
    ("conditions", "source.ip", "10.0.0.1", True),
    ("conditions", "source.ip", "10.0.0.0/8", True),
    ("conditions", "source.ip", "10.0.0.2", False),
    ("security", "remote.ip", "10.0.0.1", True),
    ("security", "remote.ip", "10.0.0.2/32", False),
    ("conditions", "source.namespace", "front", True),
    ("generator", "source.namespace", "fr*", True),
    ("generator", "source.namespace", "*nt", True),
    ("generator", "source.namespace", "*", True),
    ("generator", "source.namespace", "ront", False),
    ("conditions", "source.principal", "cluster.local/ns/front/sa/web", True),
    ("generator", "source.principal", "*/ns/front/sa/web", True),
    ("generator", "source.principal", "spiffe://cluster.local/ns/front/sa/web", False),
    ("generator", "source.serviceAccount", "front/web", True),
    ("generator", "source.serviceAccount", "web", False),
    ("conditions", "request.auth.principal", "https://accounts.example/ada", True),
    ("generator", "request.auth.principal", "https://accounts.example/*", True),
    ("generator", "request.auth.principal", "*/ada", True),
    ("generator", "request.auth.principal", "*da", True),
    ("generator", "request.auth.principal", "https://acc*", False),
    ("generator", "request.auth.principal", "https:/*", False),
    ("generator", "request.auth.principal", "https*", True),
    ("generator", "request.auth.principal", "*", True),
    ("conditions", "request.auth.audiences", "shop", True),
    ("generator", "request.auth.audiences", "sh*", True),
    ("generator", "request.auth.audiences", "shop,stock", False),
    ("conditions", "request.auth.presenter", "front.example", True),
    ("generator", "request.auth.presenter", "*.example", True),
    ("conditions", "request.auth.claims[iss]", "https://accounts.example", True),
    ("conditions", "request.auth.claims[email]", "*@foo.com", True),
    ("util", "request.auth.claims[groups]", "a", True),
    ("util", "request.auth.claims[groups]", "b c", True),
    ("util", "request.auth.claims[groups]", "b", False),
    ("util", "request.auth.claims[groups]", "*", True),
    ("util", "request.auth.claims[realm][roles]", "owner", True),
    ("util", "request.auth.claims[realm][name]", "r", True),
    ("util", "request.auth.claims[realm][in.ner][x]", "y", True),
    ("util", "request.auth.claims[realm][roles][x]", "owner", False),
    ("util", "request.auth.claims[realm]", "*", False),
    ("util", "request.auth.claims[realm.name]", "r", False),
    ("util", "request.auth.claims[https://x.example/roles]", "dotted", True),
    ("util", "request.auth.claims[lists]", "x", False),
    ("util", "request.auth.claims[none]", "*", False),
    ("util", "request.auth.claims[empty]", "*", False),
    ("util", "request.auth.claims[no-groups]", "*", False),
    ("util", "request.auth.claims[absent]", "*", False),
    ("util", "request.auth.claims[Email]", "*", False),
    ("util", "request.auth.claims[scope]", "write", True),
    ("util", "request.auth.claims[scope]", "read write", False),
    ("util", "request.auth.claims[permission]", "write all", True),
    ("util", "request.auth.claims[realm][scope]", "a", False),
    ("ours", "request.auth.claims[level]", "3", True),
    ("ours", "request.auth.claims[ratio]", "1.5", True),
    ("ours", "request.auth.claims[admin]", "true", True),
    ("ours", "request.auth.claims[groups]", "7", True),
    ("conditions", "destination.ip", "127.0.0.2", True),
    ("conditions", "destination.ip", "10.2.0.0/16", False),
    ("conditions", "destination.port", "8080", True),
    ("conditions", "destination.port", "80", False),
    ("conditions", "connection.sni", "www.example.com", True),
    ("generator", "connection.sni", "*.example.com", True),
]


@pytest.fixture(scope="module")
def tokens(policy: Callable[..., str]) -> str:
    """A RequestAuthentication that takes the issuer's tokens."""
    return policy({"jwtRules": [{"issuer": ISSUER.name, "jwks": ISSUER.jwks()}]}, kind="RequestAuthentication")


@pytest.fixture(scope="module")
def request_fields(now: int) -> dict[str, Any]:
    token = ISSUER.token(aud=["shop", "stock"], exp=now + 60, **CLAIMS)
    return {"headers": [*HEADERS, ("authorization", f"Bearer {token}")], "sni": "www.example.com"}


@pytest.mark.parametrize(("source", "key", "value", "matches"), TABLE)
def test_a_condition_matches_as_istios(
    mesh: Callable[..., Any],
    policy: Callable[..., str],
    tokens: str,
    request_fields: dict[str, Any],
    source: str,
    key: str,
    value: str,
    *,
    matches: bool,
) -> None:
    def reason(**condition: list[str]) -> str:
        rules = [{"when": [{"key": key, **condition}]}]
        reason: str = mesh(tokens, policy({"action": "DENY", "rules": rules})).decide(**request_fields).reason
        return reason

    assert reason(values=[value]) == ("deny_rule" if matches else "no_allow_policy")
    assert reason(notValues=[value]) == ("no_allow_policy" if matches else "deny_rule")


def test_every_key_is_tried() -> None:
    tried = {key.partition("[")[0] for _, key, _, _ in TABLE}
    assert tried == {key.partition("[")[0] for key in CONDITION_KEYS}


@pytest.mark.parametrize("key", ["request.headers", "request.auth.claims"])
def test_what_is_ours_is_told(key: str) -> None:
    assert any(row[0] == "ours" and row[1].startswith(key) for row in TABLE)
    assert f"`{key}[" in DIFFERENCES
