"""What records say, down to the files: secrets that an AuditPolicy leaves out or hashes are found nowhere, and allowed
requests that are only counted add up."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.generated import PolicySet
from support.http import Connection, ask
from support.issuer import Issuer
from support.running import ALLOW, CLIENT, DENY, EGRESS_PORT, RunningMesh, eventually

from peltast.audit.chain import verify_store

TOKENS = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  jwtRules:
    - issuer: https://issuer.example
      jwks: '@JWKS@'
      outputClaimToHeaders: [{header: x-group, claim: group}]
"""

SECRETIVE = """
---
apiVersion: peltast.dev/v1
kind: AuditPolicy
metadata: {name: secretive, namespace: shop}
spec:
  record:
    query: hash
    tokenSubject: hash
    sourceAddress: redact
    headers:
      - {name: X-Card, as: hash}
      - {name: x-diagnosis, as: redact}
      - {name: x-shown, as: keep}
      - {name: x-absent, as: keep}
      - {name: x-group, as: keep}
      - {name: authorization, as: redact}
    claims:
      - {name: iban, as: hash}
      - {name: "claims[health][blood]", as: redact}
      - {name: groups, as: keep}
"""

SECRETS = {
    "query": "pin=sesame-in-query",
    "card": "sesame-in-card",
    "diagnosis": "sesame-in-diagnosis",
    "iban": "sesame-in-iban",
    "blood": "sesame-in-blood",
    "subject": "sesame-in-subject",
    "header that nobody chose": "sesame-in-header",
    "claim that nobody chose": "sesame-in-claim",
}
SHOWN = "marker-that-is-kept"


async def test_secrets_are_found_nowhere_and_hash_alike_in_two_sidecars(folder: Path, state: Path) -> None:
    issuer = Issuer("https://issuer.example")
    (folder / "policies.yaml").write_text(ALLOW + TOKENS.replace("@JWKS@", issuer.jwks()) + SECRETIVE)
    token = issuer.token(
        sub=SECRETS["subject"],
        iban=SECRETS["iban"],
        health={"blood": SECRETS["blood"]},
        other=SECRETS["claim that nobody chose"],
        group="buyers",
        groups=["buyers"],
    )
    headers = {
        "authorization": f"Bearer {token}",
        "x-card": SECRETS["card"],
        "x-diagnosis": SECRETS["diagnosis"],
        "x-other": SECRETS["header that nobody chose"],
        "x-shown": SHOWN,
        "x-group": "sesame-in-header",
    }
    async with RunningMesh(folder, state) as mesh:
        for path, status in (("/open", 200), ("/shut", 403)):
            assert (await ask(CLIENT, EGRESS_PORT, "GET", f"{path}?{SECRETS['query']}", headers)).status == status
        malformed = {**headers, "transfer-encoding": "sesame-in-query"}
        assert (await ask(CLIENT, EGRESS_PORT, "GET", f"/open?{SECRETS['query']}", malformed)).status >= 400
        rows = await eventually(lambda: recorded(mesh, decisions=2, outbound=3), "all requests are on record")
        key = (state / "collector/audit/hash.key").read_bytes()
        check_rows(rows, key, token)
        database = await mesh.connect()
        assert (verification := await verify_store(database)).sound, verification.findings
        everything = await database.fetch("SELECT records::text FROM records")
        await database.close()
        texts = [row[0].encode() for row in everything] + [mesh.output.encode()]
        assert any(SHOWN.encode() in text for text in texts), "what is kept is found in rows"
        assert files_with(state, SHOWN.encode()), "and in files"
        secrets = [*SECRETS.values(), token.rpartition(".")[2]]
        for secret in secrets:
            assert [text for text in texts if secret.encode() in text] == [], f"{secret} is in the store"
            assert files_with(state, secret.encode()) == [], f"{secret} is on disk"


def files_with(folder: Path, text: bytes) -> list[Path]:
    """The files below `folder` that hold `text`: spools, logs, the database's own and all others."""
    return [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink() and text in read(file)]


def read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:  # it has gone meanwhile
        return b""


async def recorded(mesh: RunningMesh, decisions: int, outbound: int) -> list[Any] | None:
    connection = await mesh.connect()
    rows = await connection.fetch("SELECT * FROM records ORDER BY leaf")
    await connection.close()
    kinds = [row["kind"] for row in rows]
    enough = kinds.count("decision") >= decisions and kinds.count("outbound") >= outbound
    return rows if enough and kinds.count("end") >= decisions else None


def check_rows(rows: Iterable[Any], key: bytes, token: str) -> None:
    def hashed(value: str) -> str:
        return hmac.digest(key, value.encode(), "sha256").hex()

    decisions = [row for row in rows if row["kind"] == "decision" and row["path"] in ("/open", "/shut")]
    assert [row["effect"] for row in decisions] == ["allow", "deny"]
    for row in decisions:
        assert row["query"] == hashed(SECRETS["query"])
        assert row["token_subject"] == hashed(SECRETS["subject"])
        assert row["source_address"] is None
        assert row["request_headers"].splitlines() == [
            f"x-card: hmac-sha256:{hashed(SECRETS['card'])}",
            "x-diagnosis: redacted",
            f"x-shown: {SHOWN}",
            "x-group: buyers",
            "authorization: redacted",
        ]
        assert row["claims"].splitlines() == [
            f"iban: hmac-sha256:{hashed(SECRETS['iban'])}",
            "claims[health][blood]: redacted",
            'groups: ["buyers"]',
        ]
        assert row["redacted"] == ["source_address"]
        assert sorted(row["hashed"]) == ["query", "token_subject"]
    assert {row["source_address"] for row in rows} == {None}
    others = [row for row in rows if row["kind"] == "outbound" and row["path"] in ("/open", "/shut")]
    assert {row["owner"].rpartition("/")[2] for row in others} == {"client"}
    assert {row["query"] for row in others} == {hashed(SECRETS["query"])}, "equal values hash equally in two sidecars"


HASHING = """
apiVersion: peltast.dev/v1
kind: AuditPolicy
metadata: {name: hashing, namespace: istio-system}
spec: {record: {query: hash, sourceAddress: hash}}
"""


class Hashing(PolicySet):
    """No policies but for one that has records hash something."""

    text = HASHING


SUMMARY = """
---
apiVersion: peltast.dev/v1
kind: AuditPolicy
metadata: {name: counted, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  record: {allowed: summary, query: redact}
"""
ALLOWED, DENIED = 200, 5


async def test_allowed_requests_are_counted_and_denied_ones_are_whole(folder: Path, state: Path) -> None:
    (folder / "policies.yaml").write_text(ALLOW + SUMMARY)
    async with RunningMesh(folder, state) as mesh:
        connections = [await Connection.open(CLIENT, EGRESS_PORT) for _ in range(4)]
        received = 0
        for number in range(ALLOWED):
            response = await connections[number % 4].ask("GET", f"/open/{number}?a=b")
            assert response.status == 200
            received += len(response.body)
        for _ in range(DENIED):
            assert (await connections[0].ask("GET", "/shut?a=b")).status == 403
        database = await mesh.connect()

        async def counted() -> bool:
            query = "SELECT coalesce(sum(count), 0) FROM records WHERE kind = 'summary'"
            return int(await database.fetchval(query)) >= ALLOWED

        await eventually(counted, "the minute is over", 90)
        summaries = await database.fetch("SELECT * FROM records WHERE kind = 'summary'")
        assert sum(row["count"] for row in summaries) == ALLOWED
        assert sum(row["bytes_sent"] for row in summaries) == received
        what = (
            "source_principal",
            "destination_principal",
            "destination_port",
            "method",
            "policy",
            "rule",
            "status",
            "path",
        )
        server = "spiffe://cluster.local/ns/shop/sa/server"
        client = "spiffe://cluster.local/ns/shop/sa/client"
        assert {tuple(row[name] for name in what) for row in summaries} == {
            (client, server, 8080, "GET", "shop/readers", 0, 200, None)
        }
        assert all(row["since_ns"] <= row["until_ns"] <= row["time_ns"] for row in summaries)
        own = await database.fetch("SELECT * FROM records WHERE owner = $1 AND kind IN ('decision', 'end')", server)
        denied = [row for row in own if row["kind"] == "decision"]
        assert [(row["effect"], row["path"], row["redacted"]) for row in denied] == [
            ("deny", "/shut", ["query"])
        ] * DENIED
        ends = {(row["spool"], row["decision_sequence"]) for row in own if row["kind"] == "end"}
        assert ends == {(row["spool"], row["sequence"]) for row in denied}
        assert (verification := await verify_store(database)).sound, verification.findings
        await database.close()
        for connection in connections:
            connection.close()


async def test_what_was_to_be_counted_is_recorded_whole_once_it_is_ended(folder: Path, state: Path) -> None:
    mesh_file = folder / "mesh.yaml"
    mesh_file.write_text(mesh_file.read_text().replace("echo.py", "streams.py"))
    (folder / "policies.yaml").write_text(ALLOW + SUMMARY)
    async with RunningMesh(folder, state) as mesh:
        reader, writer = await asyncio.open_connection(CLIENT, EGRESS_PORT)
        writer.write(b"GET /open/closed?a=b HTTP/1.1\r\nhost: server\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"tick"), 15)).startswith(b"HTTP/1.1 200")
        (folder / "deny.yaml").write_text(DENY)
        async with asyncio.timeout(15):
            while await reader.read(65536):
                pass
        writer.close()
        database = await mesh.connect()

        async def requests() -> list[Any]:
            return list(await database.fetch("SELECT * FROM requests"))

        (row,) = await eventually(requests, "it is on record")
        assert (row["effect"], row["policy"], row["path"]) == ("allow", "shop/readers", "/open/closed")

        async def ended_by() -> Any:
            return await database.fetchval("SELECT ended_policy FROM requests")

        assert await eventually(ended_by, "and why it ended") == "shop/closed"
        await database.close()
