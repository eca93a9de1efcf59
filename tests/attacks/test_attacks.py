"""The table of attacks on a running mesh: what the client sees, what the application sees, and what is on record."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from support.attacker import Answer, Target
from support.issuer import Issuer
from support.peer import context, svid_for
from support.running import CLIENT, EGRESS_PORT, MESH, SERVER, SIDECAR_PORT, RunningMesh, eventually

pytestmark = pytest.mark.e2e

TABLE: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("attacks.yaml").read_text())
LAST = "the-last"
CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"

POLICIES = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  jwtRules: [{issuer: https://one.example, audiences: [shop], jwks: '@JWKS@'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - to: [{operation: {paths: [/admin, /admin/*]}}]
    - to: [{operation: {hosts: [blocked.example, "blocked.example:*"]}}]
    - to: [{operation: {methods: [DELETE]}}]
    - when: [{key: "request.headers[x-debug]", values: ["*"]}]
    - when: [{key: "request.headers[x-role]", values: [root]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
      to: [{operation: {methods: [GET, HEAD, POST], paths: [/open, /open/*]}}]
    - from: [{source: {requestPrincipals: ["https://one.example/*"]}}]
      to: [{operation: {paths: [/tokens]}}]
      when: [{key: "request.auth.claims[groups]", values: [writers]}]
"""


# Tokens ---------------------------------------------------------------------------------------------------------------


def tokens(issuer: Issuer) -> dict[str, str]:
    """Every token that the table names."""
    now = int(time.time())
    good = issuer.token(groups=["writers"])
    header, payload, signature = good.split(".")
    claims = json.loads(jwt.utils.base64url_decode(payload))
    twice = json.dumps(claims).replace('"sub": "ada"', '"sub": "ada", "sub": "root"')
    hs256 = {"alg": "HS256", "kid": "RS256"}
    return {
        "good": good,
        "unsigned": f"{header}.{payload}.",
        "none": f"{part({'alg': 'none'})}.{payload}.",
        "none in other letters": f"{part({'alg': 'nOnE'})}.{payload}.",
        "hs256": signed_with(issuer.public_pem(), f"{part(hs256)}.{payload}"),
        "changed": f"{header}.{part({**claims, 'sub': 'root'})}.{signature}",
        "stranger": Issuer(issuer.name).token(groups=["writers"]),
        "own key": f"{part({'alg': 'RS256', 'jwk': json.loads(Issuer('x').jwks())['keys'][0]})}.{payload}.{signature}",
        "key id": f"{part({'alg': 'RS256', 'kid': '../../dev/null'})}.{payload}.{signature}",
        "critical": f"{part({'alg': 'RS256', 'kid': 'RS256', 'crit': ['x'], 'x': 1})}.{payload}.{signature}",
        "expired": issuer.token(groups=["writers"], exp=now - 3600),
        "early": issuer.token(groups=["writers"], nbf=now + 3600),
        "elsewhere": issuer.token(groups=["writers"], aud="bank"),
        "endless": issuer.token(groups=["writers"], exp=None),
        "twice": f"{header}.{b64(twice.encode())}.{signature}",
        "large": issuer.token(groups=["writers"], pad="x" * 17_000),
    }


def part(members: Mapping[str, Any]) -> str:
    return b64(json.dumps(members).encode())


def b64(data: bytes) -> str:
    return jwt.utils.base64url_encode(data).decode()


def signed_with(key: bytes, text: str) -> str:
    return f"{text}.{b64(hmac.digest(key, text.encode(), 'sha256'))}"


# Messages -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """A row of the table."""

    row: Mapping[str, Any]
    tokens: Mapping[str, str]
    request_id: str

    @property
    def responses(self) -> int:
        statuses = self.row.get("status")
        return len(statuses) if isinstance(statuses, list) else 1

    def message(self) -> bytes:
        """What is sent over HTTP/1.1."""
        if "message" in self.row:
            return str(self.row["message"]).encode("latin-1")
        lines = [*self.row.get("with", []), *(f"x-{n}: 1" for n in range(self.row.get("many", 0)))]
        if "token" in self.row:
            lines.append(f"authorization: Bearer {{{self.row['token']}}}")
        given = {line.partition(":")[0].lower() for line in lines}
        defaults = {"host": "server", "content-length": "0", "x-request-id": self.request_id}
        lines += [f"{name}: {value}" for name, value in defaults.items() if name not in given]
        sent = [line for line in lines if line not in ("host:", "content-length:")]  # which say: none of it
        text = "\r\n".join([f"{self.row['send']} HTTP/1.1", *sent, "", self.row.get("body", "")])
        return self._filled(text).encode("latin-1")

    def headers(self) -> list[tuple[str, str]]:
        """What is sent over HTTP/2."""
        return [*((name, value) for name, value in self.row["h2"]), ("x-request-id", self.request_id)]

    def _filled(self, text: str) -> str:
        """`text` with `{NAME}` for a token, and `{TEXT*N}` for a text many times."""
        text = re.sub(r"\{([^{}]*)\*(\d+)\}", lambda found: found[1] * int(found[2]), text)
        return re.sub(r"\{([a-zA-Z0-9 ]+)\}", lambda found: self.tokens[found[1]], text)


# Records --------------------------------------------------------------------------------------------------------------

Rows = Mapping[str, Mapping[str, Any]]


async def recorded(mesh: RunningMesh) -> Rows | None:
    """The inbound rows by request id and, where there is none, by the peer's address; once the last request is there.

    A spool is shipped in order: what came before the last request is there too.
    """
    connection = await mesh.connect()
    rows = await connection.fetch("SELECT * FROM requests ORDER BY time")
    await connection.close()
    by_name = {row["source_address"]: dict(row) for row in rows} | {row["request_id"]: dict(row) for row in rows}
    return by_name if LAST in by_name else None


# The test -------------------------------------------------------------------------------------------------------------


def targets(state: Path, folder: Path) -> dict[str, Target]:
    """Where attacks go, by their `as`."""
    return {
        "application": Target(CLIENT, EGRESS_PORT),
        "peer": Target(SERVER, SIDECAR_PORT, context(folder, svid_for(state, CLIENT_ID))),
        "nobody": Target(SERVER, SIDECAR_PORT, context(folder, None)),
        "plaintext": Target(SERVER, SIDECAR_PORT),
    }


async def send(attack: Attack, by_name: Mapping[str, Target]) -> Answer:
    if "h2" in attack.row:
        return await by_name["peer"].send_h2(attack.headers())
    return await by_name[attack.row.get("as", "application")].send(attack.message(), attack.responses)


async def test_every_attack_comes_to_what_the_table_says(tmp_path: Path, state: Path) -> None:
    issuer = Issuer("https://one.example")
    folder, seen = tmp_path / "mesh", tmp_path / "seen"
    folder.mkdir()
    (folder / "mesh.yaml").write_text(MESH.replace("@SEEN@", str(seen)))
    (folder / "policies.yaml").write_text(POLICIES.replace("@JWKS@", issuer.jwks()))
    made = tokens(issuer)
    attacks = [Attack(row, made, f"attack-{number}") for number, row in enumerate(TABLE)]
    async with RunningMesh(folder, state, "--concurrency", "1") as mesh:  # one spool: see `recorded`
        by_name = targets(state, tmp_path / "peer")
        answers = await asyncio.gather(*(send(attack, by_name) for attack in attacks))
        await by_name["application"].send(Attack({"send": "GET /open"}, {}, LAST).message(), 1)
        rows = await eventually(lambda: recorded(mesh), "all is on record")
    wrong = {
        attack.row["attack"]: differing
        for attack, answer in zip(attacks, answers, strict=True)
        if (differing := differences(attack, answer, rows))
    }
    assert not wrong, yaml.safe_dump(wrong)
    allowed = {name for name, row in rows.items() if row["effect"] == "allow"}
    assert set(filter(None, seen.read_text().split("\n"))) <= allowed, "the application saw what was denied"


def differences(attack: Attack, answer: Answer, rows: Rows) -> dict[str, Any]:
    """What was expected, and what came, wherever they differ."""
    expected = {"rule": None, "sees": {}, **attack.row}
    record = rows.get(attack.request_id) or rows.get(answer.source_address) or {}
    statuses = answer.statuses if "h2" not in attack.row else [record.get("status")]
    pairs: dict[str, tuple[Any, Any]] = {
        "status": (expected["status"], statuses[0] if len(statuses) == 1 else statuses or None),
        "reason": (expected["reason"], record.get("reason")),
        "effect": (effect(expected["reason"]), record.get("effect")),
        "reset": (expected["status"] == 0, answer.refused),
    }
    if expected["reason"] == "deny_rule":
        pairs["rule"] = (("shop/never", expected["rule"]), (record.get("policy"), record.get("rule")))
    if answer.application:
        seen = answer.application["headers"] | {"client": certified(answer)}
        pairs["method and path"] = (target(attack), (answer.application["method"], answer.application["path"]))
        pairs["sees"] = (expected["sees"], {name: seen.get(name) for name in expected["sees"]})
    return {name: [str(each) for each in pair] for name, pair in pairs.items() if pair[0] != pair[1]}


def effect(reason: str | None) -> str | None:
    """On record; none where nothing is."""
    return None if reason is None else "allow" if reason == "allow_rule" else "deny"


def target(attack: Attack) -> tuple[str, str]:
    """What is asked for: what is allowed must reach the application so."""
    if "h2" in attack.row:
        headers = dict(attack.headers())
        return headers[":method"], headers[":path"]
    method, path = attack.message().decode("latin-1").split(" ")[:2]
    return method, attack.row.get("path", path)


def certified(answer: Answer) -> str | None:
    """The one SPIFFE ID by which the application is told who calls."""
    assert answer.application
    names = re.findall("URI=([^;,]*)", answer.application["headers"]["x-forwarded-client-cert"])
    return names[0] if len(names) == 1 else None
