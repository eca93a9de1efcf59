"""Keys that the control plane fetches from a real HTTPS server, down to the sidecar that verifies by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.http import Response, ask
from support.https import HttpsServer
from support.issuer import Issuer
from support.running import CLIENT, EGRESS_PORT, RunningMesh, eventually

TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  require: true
  jwtRules:
    - issuer: https://good.example
      jwksUri: @GOOD@
      timeout: @TIMEOUT@
      fromHeaders: [{name: x-jwt}]
      outputClaimToHeaders: [{header: x-user, claim: sub}]
    - issuer: https://stranger.example
      jwksUri: @STRANGER@
"""


async def with_token(token: str, **headers: str) -> Response:
    return await ask(CLIENT, EGRESS_PORT, "GET", "/open", {"x-jwt": token, **headers})


async def test_fetched_keys_verify_tokens_and_new_ones_empty_no_cache(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    old, new, stranger = (Issuer(f"https://{name}.example") for name in ("good", "good", "stranger"))
    good = HttpsServer(tmp_path / "good", old.jwks())
    bad = HttpsServer(tmp_path / "bad", stranger.jwks())
    environment = {"SSL_CERT_FILE": str(good.authority)}
    async with good, bad:
        text = TOKENS.replace("@GOOD@", good.uri).replace("@STRANGER@", bad.uri)
        policy = folder / "tokens.yaml"
        policy.write_text(text.replace("@TIMEOUT@", "5s"))
        async with RunningMesh(folder, state, "--concurrency", "1", environment=environment) as mesh:
            allowed = await with_token(old.token(), **{"x-user": "root"})
            assert allowed.status == 200
            seen = allowed.json()["headers"]
            assert seen["x-user"] == "ada"
            assert "x-jwt" not in seen
            in_query = f"/open?a=b&access_token={stranger.token()}"
            refused = await ask(CLIENT, EGRESS_PORT, "GET", in_query)
            assert refused.status == 401
            assert 'error="invalid_token"' in refused.headers["www-authenticate"]
            missing = await ask(CLIENT, EGRESS_PORT, "GET", "/open")
            assert missing.status == 401
            assert "error" not in missing.headers["www-authenticate"]
            assert bad.requests == 0, "a server whose certificate nobody signed is told nothing"

            good.body = new.jwks()
            policy.write_text(text.replace("@TIMEOUT@", "6s"))

            async def new_keys_verify() -> bool:
                return (await with_token(new.token())).status == 200

            await eventually(new_keys_verify, "the new keys are at the sidecar")
            assert (await with_token(old.token())).status == 401

            rows: list[Any] = await eventually(lambda: decisions(mesh, 2), "both tokens that verify are on record")
            assert [row["reason"] for row in rows[:3]] == ["allow_rule", "token_keys_unavailable", "token_required"]
            verified = [row for row in rows if row["reason"] == "allow_rule"]
            assert [row["decided_by"] for row in verified[:2]] == ["engine", "cache"], "new keys empty no cache"
            assert len({row["keys"] for row in verified}) == 2
            assert len({row["program"] for row in rows}) == 1
            assert await eventually(lambda: recorded_paths(mesh), "both witnesses of a path") == {"/open?a=b"}
            assert await acts(mesh, "keys.take", good.uri) == ["", ""]
            (why,) = await acts(mesh, "keys.refuse", bad.uri)
            assert "CERTIFICATE_VERIFY_FAILED" in why


async def decisions(mesh: RunningMesh, allowed: int) -> list[Any] | None:
    connection = await mesh.connect()
    rows = await connection.fetch("SELECT * FROM records WHERE kind = 'decision' ORDER BY spool_id, sequence")
    await connection.close()
    return rows if sum(row["effect"] == "allow" for row in rows) >= allowed else None


async def recorded_paths(mesh: RunningMesh) -> set[str] | None:
    """The paths with a query, as both sidecars recorded them; none before both have."""
    connection = await mesh.connect()
    rows = await connection.fetch("SELECT kind, path FROM records WHERE path LIKE '%?%'")
    await connection.close()
    return {row["path"] for row in rows} if {"decision", "outbound"} <= {row["kind"] for row in rows} else None


async def acts(mesh: RunningMesh, action: str, uri: str) -> list[str]:
    """The details of the acts about the keys at `uri`."""
    query = "SELECT coalesce(detail, '') AS detail FROM records WHERE action = $1 AND object LIKE '%' || $2"
    connection = await mesh.connect()
    found = [row["detail"] for row in await connection.fetch(query, action, uri)]
    await connection.close()
    return found
