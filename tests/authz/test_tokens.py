"""RequestAuthentication from YAML to decisions about tokens that real keys signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.tokens import HOUR, ISSUER, OTHER_ISSUER, b64, bearer, claims, ec_key, jwk, key_set, rsa_key

from peltast.policies.problems import InvalidConfiguration

Make = Callable[..., Any]


def sign_text(header: str, payload: str, key: rsa.RSAPrivateKey | None = None) -> str:
    """A token of exactly these texts, which no library would write, signed by RS256."""
    signed = f"{b64(header.encode())}.{b64(payload.encode())}"
    signature = (key or rsa_key("r")).sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{b64(signature)}"


NO_KEY = "no RSA, P-256, P-384 or Ed25519 key"
HEADER = '{"alg":"RS256","kid":"r"}'


@pytest.fixture(scope="module")
def verifier(mesh: Make, policy: Make) -> Any:
    rules = [
        {
            "issuer": ISSUER,
            "audiences": ["shop", "stock"],
            "jwks": key_set(jwk(rsa_key("r"), "r"), jwk(ec_key("e"), "e")),
        },
        {"issuer": OTHER_ISSUER, "jwks": key_set(jwk(rsa_key("o"), "o"))},
    ]
    return mesh(policy({"jwtRules": rules}, kind="RequestAuthentication"))


def rs256(members: dict[str, Any], key: str = "r", kid: str | None = "r", **header: Any) -> str:
    headers = {**({"kid": kid} if kid is not None else {}), **header}
    return jwt.encode(members, rsa_key(key), "RS256", headers=headers)


def es256(members: dict[str, Any], key: str = "e", kid: str = "e") -> str:
    return jwt.encode(members, ec_key(key), "ES256", headers={"kid": kid})


# Tokens that are taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda now: rs256(claims(now)), id="RS256"),
        pytest.param(lambda now: es256(claims(now)), id="ES256"),
        pytest.param(lambda now: rs256(claims(now), kid=None), id="without a key id, by any key of the issuer"),
        pytest.param(lambda now: rs256(claims(now, aud=["x", "stock"])), id="one of its audiences is accepted"),
        pytest.param(lambda now: rs256(claims(now, nbf=now, iat=now)), id="valid from now on"),
        pytest.param(lambda now: rs256(claims(now, exp=now + 0.5)), id="dates may have fractions"),
        pytest.param(lambda now: rs256(claims(now, exp=now - 59)), id="clocks may differ: expired 59 s ago"),
        pytest.param(lambda now: rs256(claims(now, nbf=now + 60)), id="clocks may differ: valid in 60 s"),
        pytest.param(lambda now: rs256(claims(now), typ="at+jwt"), id="of another type"),
    ],
)
def test_a_valid_token_is_taken(verifier: Any, now: int, make: Callable[[int], str]) -> None:
    decision = verifier.decide(**bearer(make(now)))
    assert (decision.allowed, decision.token_principal) == (True, f"{ISSUER}/ada")


def test_a_token_of_a_rule_without_audiences_may_be_for_anyone(verifier: Any, now: int) -> None:
    token = rs256(claims(now, iss=OTHER_ISSUER, aud=None), key="o", kid="o")
    assert verifier.decide(**bearer(token)).token_principal == f"{OTHER_ISSUER}/ada"


@pytest.mark.parametrize("headers", [[], [("authorization", "Basic YWRhOng=")]], ids=["no header", "other scheme"])
def test_a_request_without_a_token_is_no_ones(verifier: Any, headers: list[tuple[str, str]]) -> None:
    decision = verifier.decide(headers=headers)
    assert (decision.allowed, decision.token_principal) == (True, None)


# Tokens that are refused ----------------------------------------------------------------------------------------------


def hs256_with_the_public_key(now: int) -> str:
    """Signed with what everybody knows, for verifiers that let the token choose how a key is read."""
    pem = rsa_key("r").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = json.dumps({"alg": "HS256", "kid": "r"})
    signed = f"{b64(header.encode())}.{b64(json.dumps(claims(now)).encode())}"
    return f"{signed}.{b64(hmac.digest(pem, signed.encode(), hashlib.sha256))}"


def unsigned(now: int, algorithm: str) -> str:
    return f"{b64(json.dumps({'alg': algorithm}).encode())}.{b64(json.dumps(claims(now)).encode())}."


def tampered(now: int) -> str:
    header, _, signature = rs256(claims(now)).split(".")
    return f"{header}.{b64(json.dumps(claims(now, sub='eve')).encode())}.{signature}"


def der_signed(now: int) -> str:
    """An ES256 signature in the form of X.509 and not in that of JWS."""
    header, payload, signature = es256(claims(now)).split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    der = utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    return f"{header}.{payload}.{b64(der)}"


def payload_text(now: int, *more: str) -> str:
    members = [f'"{name}":{json.dumps(value)}' for name, value in claims(now).items()]
    return "{" + ",".join([*members, *more]) + "}"


REFUSED = [
    ("expired", "token_expired", lambda now: rs256(claims(now, exp=now - 60))),
    ("expired long ago", "token_expired", lambda now: rs256(claims(now, exp=0))),
    ("expired before 1970", "token_expired", lambda now: rs256(claims(now, exp=-(2**63)))),
    ("nbf in the future", "token_not_yet_valid", lambda now: rs256(claims(now, nbf=now + 61))),
    ("iat in the future", "token_not_yet_valid", lambda now: rs256(claims(now, iat=now + 61))),
    ("nbf beyond numbers", "token_not_yet_valid", lambda now: rs256(claims(now, nbf=1e300))),
    ("wrong audience", "token_audience", lambda now: rs256(claims(now, aud="bank"))),
    ("wrong audiences", "token_audience", lambda now: rs256(claims(now, aud=["bank", "Shop"]))),
    ("no audience", "token_audience", lambda now: rs256(claims(now, aud=None))),
    ("empty list of audiences", "token_audience", lambda now: rs256(claims(now, aud=[]))),
    ("unknown issuer", "token_issuer", lambda now: rs256(claims(now, iss="https://evil.test"))),
    ("issuer with a slash more", "token_issuer", lambda now: rs256(claims(now, iss=ISSUER + "/"))),
    ("no issuer", "token_issuer", lambda now: rs256(claims(now, iss=None))),
    ("issuer that is no text", "token_issuer", lambda now: sign_text(HEADER, '{"iss":[],"exp":9999999999}')),
    ("no algorithm", "token_algorithm", lambda now: sign_text('{"kid":"r"}', payload_text(now))),
    ("alg none", "token_algorithm", lambda now: unsigned(now, "none")),
    ("alg None", "token_algorithm", lambda now: unsigned(now, "None")),
    ("alg rs256", "token_algorithm", lambda now: sign_text('{"alg":"rs256"}', payload_text(now))),
    ("HS256 by the public key", "token_algorithm", hs256_with_the_public_key),
    ("wrong key", "token_signature", lambda now: rs256(claims(now), key="stranger")),
    ("wrong key, no key id", "token_signature", lambda now: rs256(claims(now), key="stranger", kid=None)),
    ("wrong EC key", "token_signature", lambda now: es256(claims(now), key="stranger")),
    ("another issuer's key", "token_key", lambda now: rs256(claims(now), key="o", kid="o")),
    ("signed by RSA, names the EC key", "token_signature", lambda now: rs256(claims(now), kid="e")),
    ("signed by EC, names the RSA key", "token_signature", lambda now: es256(claims(now), kid="r")),
    ("ES256 in DER", "token_signature", der_signed),
    ("claims were changed", "token_signature", tampered),
    ("no signature", "token_signature", lambda now: rs256(claims(now)).rpartition(".")[0] + "."),
    ("unknown key id", "token_key", lambda now: rs256(claims(now), kid="z")),
    ("empty key id", "token_key", lambda now: sign_text('{"alg":"RS256","kid":""}', payload_text(now))),
    ("unknown crit", "token_critical_extension", lambda now: rs256(claims(now), crit=["exp"])),
    ("empty crit", "token_critical_extension", lambda now: sign_text('{"alg":"RS256","crit":[]}', payload_text(now))),
    ("no exp", "token_without_expiry", lambda now: rs256(claims(now, exp=None))),
    ("over 16 KB", "token_too_large", lambda now: rs256(claims(now, pad="x" * 16384))),
    ("duplicate claim", "token_malformed", lambda now: sign_text(HEADER, payload_text(now, '"sub":"eve"'))),
    (
        "duplicate claim, escaped",
        "token_malformed",
        lambda now: sign_text(HEADER, payload_text(now, r'"\u0073ub":"eve"')),
    ),
    ("duplicate inside", "token_malformed", lambda now: sign_text(HEADER, payload_text(now, '"x":[{"a":1,"a":2}]'))),
    ("duplicate in header", "token_malformed", lambda now: sign_text('{"alg":"RS256","alg":"RS256"}', "{}")),
    ("padded base64", "token_malformed", lambda now: rs256(claims(now)) + "=="),
    ("padded header", "token_malformed", lambda now: "e30=." + rs256(claims(now)).partition(".")[2]),
    ("base64 of the other alphabet", "token_malformed", lambda now: "+/+/." + rs256(claims(now)).partition(".")[2]),
    ("two parts", "token_malformed", lambda now: rs256(claims(now)).rpartition(".")[0]),
    ("four parts", "token_malformed", lambda now: rs256(claims(now)) + ".x"),
    ("five parts (JWE)", "token_malformed", lambda now: "a.b.c.d.e"),
    ("empty", "token_malformed", lambda now: ""),
    ("two tokens", "token_malformed", lambda now: f"{rs256(claims(now))},{rs256(claims(now))}"),
    ("space before it", "token_malformed", lambda now: " " + rs256(claims(now))),
    ("header is a list", "token_malformed", lambda now: sign_text("[]", payload_text(now))),
    ("claims are a list", "token_malformed", lambda now: sign_text(HEADER, "[]")),
    ("claims are not JSON", "token_malformed", lambda now: sign_text(HEADER, "{,}")),
    ("claims are followed by more", "token_malformed", lambda now: sign_text(HEADER, payload_text(now) + "{}")),
    ("claims nest too deep", "token_malformed", lambda now: sign_text(HEADER, '{"a":' + "[" * 999 + "]" * 999 + "}")),
    ("key id is no text", "token_malformed", lambda now: sign_text('{"alg":"RS256","kid":1}', payload_text(now))),
    ("sub is no text", "token_malformed", lambda now: sign_text(HEADER, payload_text(now).replace('"ada"', "1"))),
    ("exp is a text", "token_malformed", lambda now: sign_text(HEADER, json.dumps(claims(now, exp="9")))),
    ("aud holds a number", "token_malformed", lambda now: rs256(claims(now, aud=["shop", 1]))),
]


@pytest.mark.parametrize(("reason", "make"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_a_bad_token_is_refused_with_its_reason(
    verifier: Any, now: int, reason: str, make: Callable[[int], str]
) -> None:
    decision = verifier.decide(**bearer(make(now)))
    assert (decision.allowed, decision.reason, decision.token_principal) == (False, reason, None)


@pytest.mark.parametrize("make", [pytest.param(row[2], id=row[0]) for row in REFUSED])
def test_a_refusal_asks_for_another_token(verifier: Any, now: int, make: Callable[[int], str]) -> None:
    assert verifier.decide(**bearer(make(now))).status == 401


def test_a_token_that_was_taken_expires_all_the_same(verifier: Any, now: int) -> None:
    token = bearer(rs256(claims(now)))
    assert verifier.decide(**token).allowed
    later = verifier.decide(**token, now_ms=(now + HOUR + 60) * 1000)
    assert (later.allowed, later.reason) == (False, "token_expired")


def test_a_token_of_exactly_16_kb_is_looked_at(verifier: Any, now: int) -> None:
    text = rs256(claims(now)) + "."
    assert verifier.decide(**bearer(text + "x" * (16384 - len(text)))).reason == "token_malformed"
    assert verifier.decide(**bearer(text + "x" * (16385 - len(text)))).reason == "token_too_large"


def test_a_bad_token_is_refused_where_policies_would_allow_without_one(mesh: Make, policy: Make, now: int) -> None:
    rules = [{"issuer": ISSUER, "jwks": key_set(jwk(rsa_key("r"), "r"))}]
    made = mesh(policy({"jwtRules": rules}, kind="RequestAuthentication"), policy({"rules": [{}]}))
    assert made.decide().allowed
    assert made.decide(**bearer(rs256(claims(now), key="stranger"))).reason == "token_signature"


def test_without_request_authentication_nobody_looks_at_tokens(mesh: Make) -> None:
    decision = mesh().decide(**bearer("nonsense"))
    assert (decision.allowed, decision.token_principal) == (True, None)
    assert decision.request_headers_to_remove == []


@pytest.mark.parametrize(("forward", "removed"), [(False, ["authorization"]), (True, [])])
def test_the_application_gets_the_token_only_where_the_rule_says_so(
    mesh: Make, policy: Make, now: int, removed: list[str], *, forward: bool
) -> None:
    rule = {"issuer": ISSUER, "jwks": key_set(jwk(rsa_key("r"), "r")), "forwardOriginalToken": forward}
    made = mesh(policy({"jwtRules": [rule]}, kind="RequestAuthentication"))
    assert made.decide(**bearer(rs256(claims(now)))).request_headers_to_remove == removed


# Rules that read tokens -----------------------------------------------------------------------------------------------

CLAIMS = {
    "azp": "shop-ui",
    "groups": ["readers", "writers"],
    "realm": {"roles": ["admin"], "level": 3, "active": True},
    "https://x.test/tenant": "a",
    "none": None,
}


def when(key: str, *values: str, unless: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"when": [{"key": key, "values": list(values)} if values else {"key": key, "notValues": list(unless)}]}


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        pytest.param({"from": [{"source": {"requestPrincipals": [f"{ISSUER}/ada"]}}]}, True, id="principal"),
        pytest.param({"from": [{"source": {"requestPrincipals": [f"{ISSUER}/*"]}}]}, True, id="principal, prefix"),
        pytest.param({"from": [{"source": {"requestPrincipals": ["*/ada"]}}]}, True, id="principal, suffix"),
        pytest.param({"from": [{"source": {"requestPrincipals": ["*"]}}]}, True, id="principal, present"),
        pytest.param({"from": [{"source": {"requestPrincipals": ["*/eve"]}}]}, False, id="principal, another"),
        pytest.param({"from": [{"source": {"notRequestPrincipals": ["*/ada"]}}]}, False, id="not principal"),
        pytest.param({"from": [{"source": {"notRequestPrincipals": ["*"]}}]}, False, id="not any principal"),
        pytest.param(when("request.auth.principal", f"{ISSUER}/ada"), True, id="when principal"),
        pytest.param(when("request.auth.audiences", "stock"), True, id="audience of several"),
        pytest.param(when("request.auth.audiences", "bank"), False, id="audience, another"),
        pytest.param(when("request.auth.audiences", unless=("stock",)), False, id="not audience, of several"),
        pytest.param(when("request.auth.presenter", "shop-ui"), True, id="presenter"),
        pytest.param(when("request.auth.presenter", "shop"), False, id="presenter, another"),
        pytest.param(when("request.auth.claims[sub]", "ada"), True, id="claim"),
        pytest.param(when("request.auth.claims[sub]", "a*"), True, id="claim, prefix"),
        pytest.param(when("request.auth.claims[groups]", "writers"), True, id="claim, element of a list"),
        pytest.param(when("request.auth.claims[groups]", "owners"), False, id="claim, no element of a list"),
        pytest.param(when("request.auth.claims[groups]", unless=("readers",)), False, id="claim, no element may be"),
        pytest.param(when("request.auth.claims[realm][roles]", "admin"), True, id="nested claim"),
        pytest.param(when("request.auth.claims[realm][level]", "3"), True, id="number"),
        pytest.param(when("request.auth.claims[realm][active]", "true"), True, id="boolean"),
        pytest.param(when("request.auth.claims[realm]", "*"), False, id="an object has no value"),
        pytest.param(when("request.auth.claims[none]", "*"), False, id="null is no value"),
        pytest.param(when("request.auth.claims[realm][roles][0]", "admin"), False, id="lists have no names"),
        pytest.param(when("request.auth.claims[sub][x]", "ada"), False, id="texts have no names"),
        pytest.param(when("request.auth.claims[https://x.test/tenant]", "a"), True, id="name with punctuation"),
        pytest.param(when("request.auth.claims[absent]", "*"), False, id="absent claim"),
        pytest.param(when("request.auth.claims[absent]", unless=("x",)), True, id="absent claim is not x"),
        pytest.param(when("request.auth.claims[SUB]", "ada"), False, id="claim names have a case"),
    ],
)
def test_rules_read_claims(mesh: Make, policy: Make, now: int, rule: dict[str, Any], *, matches: bool) -> None:
    rules = [{"issuer": ISSUER, "jwks": key_set(jwk(rsa_key("r"), "r"))}]
    made = mesh(policy({"jwtRules": rules}, kind="RequestAuthentication"), policy({"rules": [rule]}))
    token = rs256(claims(now, aud=["shop", "stock"], **CLAIMS) | {"none": None})
    assert made.decide(**bearer(token)).allowed is matches


def test_memory_tells_tokens_apart_by_the_claims_that_rules_read(mesh: Make, policy: Make, now: int) -> None:
    rules = [{"issuer": ISSUER, "jwks": key_set(jwk(rsa_key("r"), "r"))}]
    rule = when("request.auth.claims[sub]", "ada")
    made = mesh(policy({"jwtRules": rules}, kind="RequestAuthentication"), policy({"rules": [rule]}))
    assert made.decide(**bearer(rs256(claims(now)))).allowed
    assert made.decide(**bearer(rs256(claims(now, jti="2")))).decided_by == "cache"
    assert not made.decide(**bearer(rs256(claims(now, sub="eve")))).allowed
    assert not made.decide().allowed


# Key sets -------------------------------------------------------------------------------------------------------------


def good() -> dict[str, Any]:
    return jwk(rsa_key("r"), "r")


@pytest.mark.parametrize(
    ("jwks", "says"),
    [
        pytest.param(lambda: key_set(jwk(rsa_key("small", 1024), "s")), "at least 2048 bits", id="RSA of 1024 bits"),
        pytest.param(
            lambda: key_set(good(), jwk(rsa_key("small", 1024), "s")), "key 1: an RSA", id="RSA of 1024 bits, second"
        ),
        pytest.param(lambda: key_set(good(), jwk(ec_key("e"), "r")), 'two keys have the id "r"', id="duplicate key id"),
        pytest.param(lambda: key_set(jwk(rsa_key("r"), "r", use="enc")), NO_KEY, id="for encryption"),
        pytest.param(lambda: key_set(jwk(rsa_key("r"), "r", key_ops=["sign"])), NO_KEY, id="not for verifying"),
        pytest.param(lambda: key_set(jwk(rsa_key("r"), "r", alg="ES512")), NO_KEY, id="ES512 only"),
        pytest.param(lambda: key_set({"kty": "oct", "k": "AAAA"}), NO_KEY, id="symmetric"),
        pytest.param(lambda: key_set(), NO_KEY, id="empty"),
        pytest.param(lambda: key_set({**good(), "n": good()["n"] + "="}), "n is not base64url", id="padded modulus"),
        pytest.param(lambda: key_set({"kty": "RSA", "e": "AQAB"}), "n is not base64url", id="no modulus"),
        pytest.param(lambda: key_set({**jwk(ec_key("e"), "e"), "x": "AAAA"}), "have 32 bytes", id="short coordinate"),
        pytest.param(lambda: "5", "key sets:", id="a number"),
        pytest.param(lambda: "{}", "key sets:", id="no keys"),
        pytest.param(lambda: '{"keys":[{"kty":5}]}', "key sets:", id="kty is no text"),
        pytest.param(lambda: '{"keys":[],"x":NaN}', "", id="not a number"),
        pytest.param(lambda: r'{"keys":[],"x":"\ud800"}', "", id="half a character"),
        pytest.param(lambda: '{"keys":' + "[" * 100_000, "", id="nested without end"),
        pytest.param(lambda: "{", "not JSON", id="not JSON"),
        pytest.param(lambda: key_set(good()).replace('"kty"', '"kid":"r","kty"'), "'kid' is given twice", id="twice"),
    ],
)
def test_a_bad_key_set_is_refused_at_load(mesh: Make, policy: Make, jwks: Callable[[], str], says: str) -> None:
    rules = [{"issuer": OTHER_ISSUER, "jwks": key_set(good())}, {"issuer": ISSUER, "jwks": jwks()}]
    with pytest.raises(InvalidConfiguration) as caught:
        mesh(policy({"jwtRules": rules}, kind="RequestAuthentication"))
    (problem,) = caught.value.problems
    assert (problem.file, problem.field) == ("mesh.yaml", "spec.jwtRules[1].jwks")
    assert problem.line > 20
    assert says in problem.given


def test_keys_that_cannot_verify_are_left_out_beside_one_that_can(mesh: Make, policy: Make, now: int) -> None:
    jwks = key_set({"kty": "oct", "k": "AAAA", "kid": "s"}, jwk(rsa_key("o"), "x", use="enc"), good())
    made = mesh(policy({"jwtRules": [{"issuer": ISSUER, "jwks": jwks}]}, kind="RequestAuthentication"))
    assert made.decide(**bearer(rs256(claims(now)))).allowed
    assert made.decide(**bearer(rs256(claims(now), key="o", kid="x"))).reason == "token_key"


def test_other_key_sets_verify_the_same_token_anew(mesh: Make, policy: Make, now: int) -> None:
    def with_key(name: str) -> Any:
        rules = [{"issuer": ISSUER, "jwks": key_set(jwk(rsa_key(name), "r"))}]
        return mesh(policy({"jwtRules": rules}, kind="RequestAuthentication"))

    old, new = with_key("r"), with_key("o")
    new.decider = old.decider
    token = bearer(rs256(claims(now)))
    assert old.decide(**token).allowed
    assert new.decide(**token).reason == "token_signature"
