"""Which signatures are taken by which keys (RFC 7518, RFC 8037, RFC 8725): every algorithm by every kind of key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.tokens import ISSUER, bearer, claims, ec_key, ed25519_key, jwk, key_set, rsa_key

from peltast.policies.problems import InvalidConfiguration

Make = Callable[..., Any]

KEYS: dict[str, Any] = {
    "rsa": rsa_key("r"),
    "p256": ec_key("e"),
    "p384": ec_key("e", ec.SECP384R1),
    "ed25519": ed25519_key("d"),
}
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS = {**dict.fromkeys(RSA, "rsa"), "ES256": "p256", "ES384": "p384", "EdDSA": "ed25519"}


def token(now: int, algorithm: str, kid: str | None) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(now), KEYS[ALGORITHMS[algorithm]], algorithm, headers=headers)


def rule(*keys: dict[str, Any]) -> dict[str, Any]:
    return {"jwtRules": [{"issuer": ISSUER, "jwks": key_set(*keys)}]}


@pytest.fixture(scope="module")
def verifier(mesh: Make, policy: Make) -> Any:
    return mesh(policy(rule(*(jwk(key, name) for name, key in KEYS.items())), kind="RequestAuthentication"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("by_name", [True, False], ids=["by key id", "by every key"])
def test_an_algorithm_is_verified_by_its_kind_of_key(verifier: Any, now: int, algorithm: str, *, by_name: bool) -> None:
    made = token(now, algorithm, ALGORITHMS[algorithm] if by_name else None)
    assert verifier.decide(**bearer(made)).token_principal == f"{ISSUER}/ada"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", KEYS)
def test_no_algorithm_is_verified_by_another_kind_of_key(verifier: Any, now: int, algorithm: str, kind: str) -> None:
    reason = verifier.decide(**bearer(token(now, algorithm, kind))).reason
    assert reason == ("no_allow_policy" if ALGORITHMS[algorithm] == kind else "token_signature")


@pytest.mark.parametrize("algorithm", RSA)
@pytest.mark.parametrize("only", RSA)
def test_a_key_for_one_algorithm_verifies_no_other(
    mesh: Make, policy: Make, now: int, algorithm: str, only: str
) -> None:
    made = mesh(policy(rule(jwk(KEYS["rsa"], "k", alg=only)), kind="RequestAuthentication"))
    reason = made.decide(**bearer(token(now, algorithm, "k"))).reason
    assert reason == ("no_allow_policy" if algorithm == only else "token_signature")


@pytest.mark.parametrize("algorithm", ["ES512", "ES256K"])
def test_what_the_crypto_library_lacks_is_refused(verifier: Any, now: int, algorithm: str) -> None:
    key = ec_key("x", ec.SECP521R1 if algorithm == "ES512" else ec.SECP256K1)
    assert verifier.decide(**bearer(jwt.encode(claims(now), key, algorithm))).reason == "token_algorithm"


@pytest.mark.parametrize(
    ("key", "more"),
    [
        pytest.param(ec_key("x", ec.SECP521R1), {}, id="P-521"),
        pytest.param(KEYS["rsa"], {"alg": "ES256"}, id="RSA for ES256"),
        pytest.param(KEYS["p256"], {"alg": "ES384"}, id="P-256 for ES384"),
        pytest.param(KEYS["p384"], {"alg": "RS256"}, id="P-384 for RS256"),
        pytest.param(KEYS["ed25519"], {"alg": "HS256"}, id="Ed25519 for HS256"),
        pytest.param(KEYS["ed25519"], {"use": "enc"}, id="Ed25519 for encryption"),
        pytest.param(KEYS["p384"], {"key_ops": ["sign", "deriveKey"]}, id="P-384 not for verifying"),
    ],
)
def test_a_set_without_a_key_that_verifies_is_refused(mesh: Make, policy: Make, key: Any, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration, match="no RSA, P-256, P-384 or Ed25519 key"):
        mesh(policy(rule(jwk(key, "k", **more)), kind="RequestAuthentication"))
