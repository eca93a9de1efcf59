"""The check tier's built-ins, and what the sidecar tier makes of the same: one of each kind of OPA's compliance cases.

All of those cases are run by `make conformance`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from peltast.authz._engine import QueryError, QueryRefused, RegoQuery

HS256 = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJ4eHgifQ"
"""Header and claims of a token."""


def ask(body: str, *, tier: str = "check", strict: bool = False) -> Any:
    """The value of `x` after `body`; none where it is undefined."""
    module = f"package p\n\nimport rego.v1\n\nanswer := x if {{\n\t{body}\n}}\n"
    policy = RegoQuery.load(tier, {"p.rego": module}, strict=strict)
    answers = json.loads(policy.evaluate("data.p.answer = x"))
    return answers[0]["x"] if answers else None


SIGNED = 'io.jwt.encode_sign({"alg": "HS256", "typ": "JWT"}, {"iss": "a", "exp": 20}, {"kty": "oct", "k": "c2VjcmV0"})'


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('x := crypto.sha256("a")', "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"),
        ('x := crypto.md5("a")', "0cc175b9c0f1b6a831c399e269772661"),
        ('crypto.hmac.equal("a", "b", x)', False),
        (f't := {SIGNED}\nx := io.jwt.verify_hs256(t, "secret")', True),
        (f't := {SIGNED}\nx := io.jwt.verify_hs256(t, "other")', False),
        (f"t := {SIGNED}\nio.jwt.decode(t, [_, x, _])", {"iss": "a", "exp": 20}),
        (
            f't := {SIGNED}\n[x, _, _] := io.jwt.decode_verify(t, {{"secret": "secret", "iss": "a", "time": 1e10}})',
            True,
        ),
        (
            f't := {SIGNED}\n[x, _, _] := io.jwt.decode_verify(t, {{"secret": "secret", "iss": "b", "time": 1e10}})',
            False,
        ),
        (f't := {SIGNED}\n[x, _, _] := io.jwt.decode_verify(t, {{"secret": "secret", "time": 3e10}})', False),
        (f't := {SIGNED}\n[x, _, _] := io.jwt.decode_verify(t, {{"secret": "secret", "alg": "HS512"}})', False),
        ('x := net.cidr_contains("10.0.0.0/8", "10.1.2.0/24")', True),
        ('x := net.cidr_contains_matches({"a": "1.0.0.0/8"}, ["1.1.1.1", "2.2.2.2"])', [["a", 0]]),
        ('x := net.cidr_merge(["10.0.0.0/25", "10.0.0.128/25"])', ["10.0.0.0/24"]),
        (r'x := regex.match(`^\d$`, "٣")', False),
        ('x := glob.match("*.example.com", [], "a.b.example.com")', False),
        ('x := glob.match("{a,b}?", [], "bc")', True),
        ('x := uri.parse("https://a.example:81/b?c#d").port', "81"),
        ('x := strings.replace_n({"a": "b", "b": "a"}, "ab")', "ba"),
        ('x := strings.split_n("a.b.c", ".", -1)', ["c"]),
        ("x := array.flatten([[1], 2])", [1, 2]),
        ('x := time.parse_rfc3339_ns("1970-01-01T00:00:01Z")', 1_000_000_000),
        ("x := numbers.range(3, 1)", [3, 2, 1]),
        ('x := object.subset({"a": 1, "b": 2}, {"a": 1})', True),
        ('x := io.jwt.decode("no token")', None),
    ],
)
def test_the_check_tier_answers_as_opa(body: str, wanted: object) -> None:
    assert ask(body) == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('x := io.jwt.decode("no token")', "eval_builtin_error: io.jwt.decode: encoded JWT had no period separators"),
        ("x := crypto.md5(1)", "eval_type_error: crypto.md5: operand 1 must be string but got number"),
        ("x := numbers.range(1, 100000000000000)", "a range may have 1000000 numbers"),
        ('x := net.cidr_expand("::/0")', "more than 65536 addresses"),
        ("io.jwt.decode_verify(`a.b.c`, {}, x)", "no key constraint"),
    ],
)
def test_strict_errors_say_which_built_in_failed(body: str, wanted: str) -> None:
    with pytest.raises(QueryError, match=wanted.replace(".", r"\.")):
        ask(body, strict=True)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [('x := strings.count("aaa", "aa")', 1), ('x := strings.count("ab", "")', 3), ('x := to_number("1.5")', 1.5)],
)
def test_both_tiers_have_what_replaces_the_interpreters(body: str, wanted: object) -> None:
    assert ask(body) == ask(body, tier="sidecar") == wanted


@pytest.mark.parametrize("tier", ["sidecar", "check"])
def test_what_a_tier_has_not_is_refused(tier: str) -> None:
    with pytest.raises(QueryRefused, match=f"http.send is outside the {tier} tier"):
        ask("x := http.send({})", tier=tier)
    policy = RegoQuery.load(tier, {})
    with pytest.raises(QueryRefused, match=f"http.send is outside the {tier} tier"):
        policy.evaluate("http.send({}, x)")
