"""Streams that were let through end when they are no longer allowed, and only then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.http import ask
from support.issuer import Issuer
from support.running import ALLOW, CLIENT, DENY, EGRESS_PORT, PELTAST, RunningMesh, eventually

ENDS_WITHIN_SECONDS = 2.0
CLOCK_SKEW = 60

TOKENS = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  jwtRules: [{issuer: https://issuer.example, jwks: '@JWKS@'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bearers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - from: [{source: {notRequestPrincipals: ["*"]}}]
      to: [{operation: {paths: [/open/bearers]}}]
"""


class Running:
    """A request whose answer does not end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def begin(cls, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Running:
        reader, writer = await asyncio.open_connection(CLIENT, EGRESS_PORT)
        merged = {"host": "server.shop.svc.cluster.local", **(headers or {})}
        if body:
            merged |= {"content-length": str(len(body)), "content-type": "application/json"}
        method = "POST" if body else "GET"
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in merged.items()), "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 15)
        assert head.split()[1] in {b"200", b"101"}, head
        return cls(reader, writer)

    async def goes_on(self) -> bool:
        """Whether something comes that was sent from now on."""
        self._reader._buffer.clear()  # type: ignore[attr-defined]
        return bool(await asyncio.wait_for(self._reader.read(1), 5))

    async def answers(self, text: bytes) -> bool:
        """Whether an echo comes back."""
        self._writer.write(text)
        return await asyncio.wait_for(self._reader.read(len(text)), 5) == text

    async def seconds_to_end(self) -> float:
        """Waits until nothing more comes; gives how long that took."""
        begun = time.monotonic()
        async with asyncio.timeout(15):
            try:
                while await self._reader.read(65536):
                    pass
            except ConnectionError:
                pass
        return time.monotonic() - begun

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
def issuer(folder: Path) -> Issuer:
    """A mesh whose application streams, and which takes this issuer's tokens."""
    issuer = Issuer("https://issuer.example")
    mesh = (folder / "mesh.yaml").read_text().replace("echo.py", "streams.py")
    (folder / "mesh.yaml").write_text(mesh)
    (folder / "policies.yaml").write_text(ALLOW + TOKENS.replace("@JWKS@", issuer.jwks()))
    return issuer


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def rfc3339(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


async def ended_by(mesh: RunningMesh, path: str) -> str:
    """Why the one request for `path` was ended, as it is on record."""
    database = await mesh.connect()
    query = "SELECT ended_reason FROM requests WHERE path = $1 AND ended_reason IS NOT NULL"
    try:
        return str(await eventually(lambda: database.fetchval(query, path), f"the end of {path} is on record"))
    finally:
        await database.close()


async def revoke(state: Path, *arguments: str) -> str:
    command = [*PELTAST, "token", "revoke", "--state", str(state), "--issuer", "https://issuer.example", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_a_new_denial_ends_what_it_denies_and_nothing_else(issuer: Issuer, folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state, "--concurrency", "2") as mesh:
        closed = [await Running.begin("/open/closed") for _ in range(6)]
        socket = await Running.begin("/open/closed", {"connection": "upgrade", "upgrade": "websocket"})
        assert await socket.answers(b"hello")
        kept = [await Running.begin("/open/door") for _ in range(6)]
        (folder / "deny.yaml").write_text(DENY)
        ends = await asyncio.gather(*(each.seconds_to_end() for each in [*closed, socket]))
        assert max(ends) < ENDS_WITHIN_SECONDS
        assert all(await asyncio.gather(*(each.goes_on() for each in kept)))
        assert await ended_by(mesh, "/open/closed") == "deny_rule"
        for each in kept:
            each.close()


async def test_a_revoked_token_ends_what_runs_by_it(issuer: Issuer, folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        now = int(time.time())
        tokens = {name: issuer.token(sub=name, jti=name, iat=now - 60) for name in ("ada", "bob", "eve")}
        running = {name: await Running.begin(f"/open/{name}", bearer(token)) for name, token in tokens.items()}
        fresh = await Running.begin("/open/fresh", bearer(issuer.token(sub="bob", iat=now)))
        assert "token ada" in await revoke(state, "--jti", "ada")
        assert await running["ada"].seconds_to_end() < ENDS_WITHIN_SECONDS
        assert await ended_by(mesh, "/open/ada") == "token_revoked"
        assert await running["bob"].goes_on()
        await revoke(state, "--subject", "bob", "--issued-before", rfc3339(now))
        assert await running["bob"].seconds_to_end() < ENDS_WITHIN_SECONDS
        assert await running["eve"].goes_on()
        await revoke(state, "--issued-before", rfc3339(now))
        assert await running["eve"].seconds_to_end() < ENDS_WITHIN_SECONDS
        assert await fresh.goes_on()
        refused = await ask(CLIENT, EGRESS_PORT, "GET", "/open/ada", bearer(tokens["ada"]))
        assert refused.status == 401
        fresh.close()


async def test_what_was_revoked_stays_so_when_the_control_plane_starts_again(
    issuer: Issuer, folder: Path, state: Path
) -> None:
    token = issuer.token(jti="one")
    async with RunningMesh(folder, state):
        await revoke(state, "--jti", "one")
    async with RunningMesh(folder, state):
        assert (await ask(CLIENT, EGRESS_PORT, "GET", "/open/door", bearer(token))).status == 401


async def test_an_expired_token_ends_what_runs_by_it(issuer: Issuer, folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        token = issuer.token(exp=int(time.time()) - CLOCK_SKEW + 3)
        running = await Running.begin("/open/bearers", bearer(token))
        other = await Running.begin("/open/bearers", bearer(issuer.token(sub="bob")))
        assert await running.seconds_to_end() < 3 + ENDS_WITHIN_SECONDS
        assert await ended_by(mesh, "/open/bearers") == "token_expired"
        assert await other.goes_on()
        other.close()


async def test_a_token_that_the_application_never_saw_is_known_when_it_is_decided_again(
    issuer: Issuer, folder: Path, state: Path
) -> None:
    async with RunningMesh(folder, state):
        kept = await Running.begin("/open/bearers", bearer(issuer.token()))
        closed = await Running.begin("/open/closed")
        (folder / "deny.yaml").write_text(DENY)
        assert await closed.seconds_to_end() < ENDS_WITHIN_SECONDS
        assert await kept.goes_on()
        kept.close()


GRPC = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"""


async def test_one_stream_of_a_connection_ends_and_the_others_go_on(folder: Path, state: Path) -> None:
    mesh_yaml = (folder / "mesh.yaml").read_text().replace("echo.py", "grpc_ticks.py")
    (folder / "mesh.yaml").write_text(mesh_yaml.replace("targetPort: 8080", "targetPort: 8080, appProtocol: grpc"))
    (folder / "policies.yaml").write_text(GRPC)
    async with RunningMesh(folder, state) as mesh, grpc.aio.insecure_channel(f"{CLIENT}:{EGRESS_PORT}") as channel:
        kept, closed = (channel.unary_stream(f"/ticks.Ticks/{name}")(b"") for name in ("Open", "Closed"))
        assert (await kept.read(), await closed.read()) == (b"tick", b"tick")
        (folder / "deny.yaml").write_text(DENY.replace("/open/closed", "/ticks.Ticks/Closed"))
        begun = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError):
            await _read_all(closed)
        assert time.monotonic() - begun < ENDS_WITHIN_SECONDS
        assert await ended_by(mesh, "/ticks.Ticks/Closed") == "deny_rule"
        while kept.done() is False and time.monotonic() - begun < ENDS_WITHIN_SECONDS:
            assert await kept.read() == b"tick"
        assert not kept.done()
        kept.cancel()


async def _read_all(stream: Any) -> None:
    while await stream.read():
        pass


AMOUNTS = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: CUSTOM
  provider: {name: amounts}
  rules: [{to: [{operation: {paths: ["/live/*"]}}]}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: amounts, namespace: shop}
spec:
  entrypoint: data.amounts.allow
  module: |
    package amounts
    allow if input.parsed_body.amount < @LIMIT@
"""


async def test_the_body_that_a_stream_came_with_is_decided_about_again(folder: Path, state: Path) -> None:
    (folder / "mesh.yaml").write_text((folder / "mesh.yaml").read_text().replace("echo.py", "streams.py"))
    (folder / "policies.yaml").write_text(AMOUNTS.replace("@LIMIT@", "1000"))
    async with RunningMesh(folder, state) as mesh:
        large = await Running.begin("/live/large", body=b'{"amount": 900}')
        small = await Running.begin("/live/small", body=b'{"amount": 90}')
        assert await large.goes_on()
        (folder / "policies.yaml").write_text(AMOUNTS.replace("@LIMIT@", "100"))
        await large.seconds_to_end()
        assert await small.goes_on()
        assert await ended_by(mesh, "/live/large") == "rego_denied"
        small.close()
