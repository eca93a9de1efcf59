"""Every refusal has its record, whichever layer refused: attempts that are not made again are counted against rows."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from spiffe import SpiffeId
from support.issuer import Issuer
from support.peer import TRUST_DOMAIN, context, svid_for
from support.running import ALLOW, APPLICATION_PORT, SERVER, SIDECAR_PORT, RunningMesh, eventually

from peltast.cli.demo.attackers import client_context, svid_of_another_authority, svid_with_two_names
from peltast.identity.ca.store import load_or_create

CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"
OTHER = "127.0.20.3"
TIMES = {SERVER: 2, OTHER: 3}
"""How often everything is tried at each sidecar: other numbers, so that none takes a row for another."""

SECOND_SERVER = f"""
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: other, namespace: shop}}
spec: {{address: {OTHER}, labels: {{app: server}}, serviceAccount: other}}
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {{name: other, namespace: shop}}
spec:
  workload: other
  command: [python, "{Path(__file__).parents[1] / "support" / "echo.py"}"]
  environment: {{LISTEN: "{OTHER}:{APPLICATION_PORT}"}}
"""

POLICIES = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  jwtRules: [{issuer: https://issuer.example, jwks: '@JWKS@'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/open/closed]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asked, namespace: shop}
spec:
  action: CUSTOM
  provider: {name: never}
  rules: [{to: [{operation: {paths: [/open/asked]}}]}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: never, namespace: shop}
spec:
  tier: check
  entrypoint: data.never.allow
  module: |
    package never
    import rego.v1
    allow := false
"""


@dataclass(frozen=True)
class Attempt:
    """Something that must not get through: by which TLS (none: plaintext), what is sent, and how it is recorded."""

    tls: ssl.SSLContext | None
    sent: bytes
    kind: str
    reason: str


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "host: server", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode()


def attempts(state: Path, folder: Path) -> list[Attempt]:
    authority = load_or_create(state / "ca", TRUST_DOMAIN, datetime.now(UTC))
    client = context(folder / "client", svid_for(state, CLIENT_ID))
    stranger = context(folder / "stranger", svid_for(state, "spiffe://cluster.local/ns/shop/sa/stranger"))
    expired = context(folder / "expired", svid_for(state, CLIENT_ID, datetime.now(UTC) - timedelta(hours=2)))
    two_names = client_context(svid_with_two_names(authority, SpiffeId(CLIENT_ID), SpiffeId(f"{CLIENT_ID}-2")))
    other_authority = client_context(svid_of_another_authority(SpiffeId(CLIENT_ID)))
    other_domain = client_context(svid_of_another_authority(SpiffeId("spiffe://other.example/ns/shop/sa/client")))
    bearer = f"authorization: Bearer {Issuer('https://issuer.example').token()}"
    return [
        Attempt(expired, get("/open"), "refusal", "certificate_refused"),
        Attempt(other_authority, get("/open"), "refusal", "certificate_refused"),
        Attempt(other_domain, get("/open"), "refusal", "certificate_refused"),
        Attempt(client_context(None), get("/open"), "refusal", "no_certificate"),
        Attempt(None, get("/open"), "refusal", "plaintext"),
        Attempt(None, b"", "refusal", "handshake_failed"),
        Attempt(two_names, get("/open"), "decision", "peer_uri_sans"),
        Attempt(client, b"GET /open HTTP/9.9\r\n\r\n", "end", "low_version"),
        Attempt(client, get("/open", "no colon"), "end", "http1.codec_error"),
        Attempt(client, get("/open", "authorization: Bearer x.y.z"), "decision", "token_malformed"),
        Attempt(client, get("/open", bearer), "decision", "token_signature"),
        Attempt(stranger, get("/open"), "decision", "no_allow_rule"),
        Attempt(client, get("/shut"), "decision", "no_allow_rule"),
        Attempt(client, get("/open/closed"), "decision", "deny_rule"),
        Attempt(client, get("/open/asked"), "decision", "rego_denied"),
    ]


async def make(attempt: Attempt, address: str) -> None:
    """One connection, and one request at most."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        reader, writer = await asyncio.open_connection(address, SIDECAR_PORT, ssl=attempt.tls)
        try:
            writer.write(attempt.sent)
            if not attempt.sent:
                writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 15)
            assert not answer.startswith(b"HTTP/1.1 200"), answer
        finally:
            writer.close()


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "mesh.yaml").write_text((folder / "mesh.yaml").read_text() + SECOND_SERVER)
    policies = POLICIES.replace("@JWKS@", Issuer("https://issuer.example").jwks())
    (folder / "policies.yaml").write_text(ALLOW + policies)
    return folder


async def test_every_refusal_is_on_record_at_the_sidecar_that_refused(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    async with RunningMesh(folder, state) as mesh:
        places = [address for address, times in TIMES.items() for _ in range(times)]
        made = [(address, each) for each in attempts(state, tmp_path) for address in places]
        random.Random(1).shuffle(made)
        for address, attempt in made:
            await make(attempt, address)
        names = {SERVER: "server", OTHER: "other"}
        wanted = Counter((names[address], each.kind, each.reason) for address, each in made)
        database = await mesh.connect()

        async def recorded() -> Counter[tuple[str, str, str]]:
            rows = await database.fetch("SELECT owner, kind, reason FROM requests WHERE effect = 'deny'")
            return Counter((row["owner"].rpartition("/")[2], row["kind"], row["reason"]) for row in rows)

        async def are_all_there() -> bool:
            return (await recorded()).total() >= wanted.total()

        await eventually(are_all_there, f"{wanted.total()} refusals are on record")
        assert await recorded() == wanted
        assert await database.fetchval("SELECT count(*) FROM requests WHERE effect = 'allow'") == 0
        await database.close()
