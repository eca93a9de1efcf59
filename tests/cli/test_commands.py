"""The commands that need no mesh, as scripts use them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.https import HttpsServer
from support.issuer import Issuer
from support.running import ALLOW, MESH, PELTAST

GARBAGE = "a: b: c: {[}"
REGO = """
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: broken, namespace: shop}
spec:
  entrypoint: data.broken.allow
  module: |
    package broken
    import rego.v1
    allow := @RULE@
"""


def peltast(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PELTAST, *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mesh"
    folder.mkdir()
    (folder / "mesh.yaml").write_text(MESH)
    (folder / "policies.yaml").write_text(ALLOW)
    return folder


def test_validate_tells_what_a_sound_folder_holds(folder: Path) -> None:
    result = peltast("validate", str(folder), "--output", "json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["valid"]
    assert summary["resources"]["AuthorizationPolicy"] == 1
    assert summary["workloads"]["shop/server"] == "spiffe://cluster.local/ns/shop/sa/server"


@pytest.mark.parametrize(
    ("rule", "fields", "tier", "why"),
    [
        ("true", "", "sidecar", "sidecars admit it"),
        ("true", "tier: check", "check", "it asks for it"),
        ("true", "timeout: 200ms", "check", "200ms is given, at most 50ms in the sidecar tier"),
        ("count(numbers.range(1, 9)) == 9", "", "check", "3: the built-in numbers.range is outside the sidecar tier"),
    ],
)
def test_validate_tells_the_tier_of_a_rego_policy_and_why(
    folder: Path, rule: str, fields: str, tier: str, why: str
) -> None:
    made = REGO.replace("@RULE@", rule).replace("spec:\n", f"spec:\n  {fields}\n")
    (folder / "policies.yaml").write_text(ALLOW + made)
    [told] = json.loads(peltast("validate", str(folder), "--output", "json").stdout)["rego"].values()
    assert told["tier"] == tier
    assert told["why"].endswith(why)
    assert f"in the {tier} tier: " in peltast("validate", str(folder)).stdout


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        (GARBAGE, 1, "", "mapping values are not allowed"),
        (ALLOW.replace("methods", "methds"), 9, "spec.rules[0].to[0].operation.methds", "methods"),
        (ALLOW + REGO.replace("@RULE@", "{"), 18, "spec.module", ""),
        (ALLOW + REGO.replace("@RULE@", "no_such_builtin(1)"), 20, "spec.module", "no_such_builtin"),
        (
            ALLOW + REGO.replace("@RULE@", "count(numbers.range(1, 9))").replace("entry", "tier: sidecar\n  entry"),
            20,
            "spec.module",
            "outside the sidecar tier",
        ),
        (ALLOW + REGO.replace("@RULE@", "http.send({})"), 20, "spec.module", "for what the check tier admits"),
    ],
    ids=[
        "garbage",
        "unknown field",
        "Rego that does not compile",
        "unknown built-in",
        "outside the sidecar tier",
        "outside both",
    ],
)
def test_validate_names_file_line_and_field(folder: Path, text: str, line: int, field: str, says: str) -> None:
    (folder / "policies.yaml").write_text(text)
    result = peltast("validate", str(folder), "--output", "json")
    assert result.returncode == 1
    problem: dict[str, Any] = json.loads(result.stdout)["problems"][0]
    assert (problem["file"], problem["field"]) == ("policies.yaml", field)
    assert problem["line"] >= line - 1
    assert says in problem["given"] + problem["allowed"]
    plain = peltast("validate", str(folder))
    assert plain.returncode == 1
    assert "error policies.yaml:" in plain.stderr
    assert "\x1b[" not in plain.stderr, "colour is for terminals"


def test_a_file_of_100_mb_is_refused(folder: Path) -> None:
    with (folder / "huge.yaml").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    result = peltast("validate", str(folder))
    assert result.returncode == 1
    assert "huge.yaml: 104,857,600 bytes are given; a file has at most 4,194,304 bytes" in result.stderr


def test_decide_answers_a_line_with_a_line(folder: Path) -> None:
    def question(path: str) -> str:
        attributes = {
            "source": {"principal": "spiffe://cluster.local/ns/shop/sa/client"},
            "destination": {"principal": "spiffe://cluster.local/ns/shop/sa/server"},
            "request": {"http": {"method": "GET", "path": path, "host": "server"}},
        }
        return json.dumps({"attributes": attributes})

    given = "\n".join([question("/open"), question("/open/../shut"), "{nonsense"])
    result = peltast("policy", "decide", "--config", str(folder), given=given)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(answer.get("effect"), answer.get("reason")) for answer in answers] == [
        ("allow", "allow_rule"),
        ("deny", "no_allow_rule"),
        (None, None),
    ]
    assert answers[0]["policy"] == "shop/readers"
    assert answers[2]["line"] == 3
    assert result.returncode == 1, "a line could not be decided"


def test_decide_takes_a_connection_that_carries_no_http(folder: Path) -> None:
    with (folder / "policies.yaml").open("a") as file:
        file.write(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
            "metadata: {name: office, namespace: shop}\n"
            "spec: {rules: [{from: [{source: {namespaces: [office]}}]}]}\n"
        )

    def connection(namespace: str) -> str:
        attributes = {
            "source": {"principal": f"spiffe://cluster.local/ns/{namespace}/sa/client"},
            "destination": {"principal": "spiffe://cluster.local/ns/shop/sa/server"},
        }
        return json.dumps({"attributes": attributes})

    result = peltast("policy", "decide", "--config", str(folder), given="\n".join(map(connection, ("office", "shop"))))
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(answer["effect"], answer["policy"]) for answer in answers] == [("allow", "shop/office"), ("deny", None)]
    assert result.returncode == 0


TOKENS = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  jwtRules:
    - {issuer: https://one.example, jwksUri: "@ONE@"}
    - {issuer: https://two.example, jwksUri: "@TWO@"}
"""


async def test_decide_fetches_keys_as_the_mesh_would(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Issuer("https://one.example"), Issuer("https://two.example")
    trusted, stranger = HttpsServer(tmp_path / "one", one.jwks()), HttpsServer(tmp_path / "two", two.jwks())
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.authority))

    def question(token: str) -> str:
        http = {"method": "GET", "path": "/open", "host": "server", "headers": {"authorization": f"Bearer {token}"}}
        client, server = ({"principal": f"spiffe://cluster.local/ns/shop/sa/{name}"} for name in ("client", "server"))
        return json.dumps({"attributes": {"source": client, "destination": server, "request": {"http": http}}})

    async with trusted, stranger:
        (folder / "tokens.yaml").write_text(TOKENS.replace("@ONE@", trusted.uri).replace("@TWO@", stranger.uri))
        given = "\n".join([question(one.token()), question(two.token())])
        result = await asyncio.to_thread(peltast, "policy", "decide", "--config", str(folder), given=given)
    reasons = [json.loads(line)["reason"] for line in result.stdout.splitlines()]
    assert (result.returncode, reasons) == (0, ["allow_rule", "token_keys_unavailable"])
    assert f"no keys of https://two.example from {stranger.uri}" in result.stderr


def test_version_names_every_part() -> None:
    parts = json.loads(peltast("version", "--output", "json").stdout)
    assert parts.keys() == {"peltast", "python", "envoy", "postgresql"}
    assert parts["envoy"].startswith("1.40.")
    assert "sha256:" in parts["envoy"]
    assert parts["postgresql"].startswith("18.")


@pytest.mark.parametrize("command", ["", "up", "demo", "validate", "version", "policy decide", "agent", "collector"])
def test_help_teaches(command: str) -> None:
    result = peltast(*command.split(), "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--jti", "1"), "Is `peltast up` running"),
        ((), "either a token's id, or a time"),
        (("--issued-before", "yesterday"), "a time such as"),
        (("--issued-before", "2026-01-01T00:00:00"), "with its zone"),
        (("--issued-before", "2999-01-01T00:00:00Z"), "lies ahead"),
    ],
)
def test_a_revocation_that_cannot_be_made_says_why(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    result = peltast("token", "revoke", "--state", str(tmp_path), "--issuer", "https://issuer.example", *arguments)
    assert result.returncode == 1
    assert says in result.stderr


def test_a_sidecar_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "sidecars" / "shop" / "web").mkdir(parents=True)
    result = peltast("proxy", "cache", "--state", str(tmp_path), "shop/wbe")
    assert result.returncode == 1
    assert "shop/wbe" in result.stderr
    assert "there are shop/web" in result.stderr
