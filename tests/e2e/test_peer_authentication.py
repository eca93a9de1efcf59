"""What a real sidecar takes by STRICT, PERMISSIVE and DISABLE, what its callers speak to it, and what is on record."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from spiffe import SpiffeId
from support import running
from support.http import Connection, Response, ask
from support.peer import context, svid_for
from support.running import ALLOW, APPLICATION_PORT, CLIENT, EGRESS_PORT, SERVER, SIDECAR_PORT, RunningMesh, eventually

from peltast.audit.reports.make import make_report
from peltast.audit.reports.plaintext import PLAINTEXT as PLAINTEXT_REPORT
from peltast.audit.reports.report import Span
from peltast.cli.demo.attackers import svid_of_another_authority, svid_with_two_names
from peltast.identity.ca.store import load_or_create

CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/shop/sa/server"
OTHER_PORT, OTHER_APPLICATION_PORT = 9443, 9090

OVERSIZE_CLIENT_HELLO = (b"\x16\x03\x01\x40\x00\x01\x00\x50\x00\x03\x03" + bytes(16378)) * 2
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"

PUBLIC = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: public, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules:
    - to: [{operation: {paths: [/public]}}]
    - from: [{source: {notPrincipals: ["*"]}}]
      to: [{operation: {paths: [/nobody]}}]
    - from: [{source: {principals: ["*"]}}]
      to: [{operation: {paths: [/somebody]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/client]}}]
      to: [{operation: {paths: [/public/closed, /nobody/closed]}}]
"""


def set_mode(folder: Path, mode: str, more: str = "") -> None:
    """Writes the PeerAuthentication of the server."""
    head = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: server, namespace: shop}\n"
    spec = f"spec: {{selector: {{matchLabels: {{app: server}}}}, mtls: {{mode: {mode}}}{more}}}\n"
    (folder / "peers.yaml").write_text(head + spec)


@pytest.fixture
def folder(folder: Path) -> Path:
    """The small mesh, with paths that need no identity."""
    (folder / "policies.yaml").write_text(ALLOW + PUBLIC)
    return folder


async def attempt(tls: ssl.SSLContext | None, path: str, port: int = SIDECAR_PORT, **headers: str) -> Response | None:
    """The sidecar's answer to one request over a connection of its own; none where the connection is refused."""
    try:
        connection = await Connection.open(SERVER, port, tls)
    except (ConnectionError, ssl.SSLError):
        return None
    try:
        return await connection.ask("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})
    except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
        return None
    finally:
        connection.close()


async def send(tls: ssl.SSLContext | None, data: bytes) -> None:
    """Sends `data` over a connection of its own, and goes away once something has come of it."""
    reader, writer = await asyncio.open_connection(SERVER, SIDECAR_PORT, ssl=tls)
    if data:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(reader.read(1), 15)
    writer.close()


async def status(tls: ssl.SSLContext | None, path: str, port: int = SIDECAR_PORT) -> int | None:
    response = await attempt(tls, path, port)
    return None if response is None else response.status


async def rows(mesh: RunningMesh, count: int) -> list[dict[str, Any]]:
    """The server's rows of requests, as soon as there are `count`."""
    database = await mesh.connect()
    query = "SELECT * FROM requests WHERE destination_principal = $1 ORDER BY time"
    try:

        async def all_there() -> list[Any] | None:
            found = await database.fetch(query, SERVER_ID)
            return found if len(found) >= count else None

        found = await eventually(all_there, f"{count} rows")
        assert len(found) == count, [(told(row), row["detail"]) for row in found]
        return [dict(row) for row in found]
    finally:
        await database.close()


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        row[name] for name in ("kind", "path", "effect", "reason", "source_principal", "connection_security_policy")
    )


async def test_a_permissive_port_takes_plaintext_as_nobody_and_mutual_tls_in_full(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    set_mode(folder, "PERMISSIVE")
    async with RunningMesh(folder, state) as mesh:
        mutual = context(tmp_path / "client", svid_for(state, CLIENT_ID))
        expected = [
            # who, path, status, what is on record
            (None, "/public", 200, ("decision", "/public", "allow", "allow_rule", None, "none")),
            (None, "/open", 403, ("decision", "/open", "deny", "no_allow_rule", None, "none")),
            (None, "/nobody", 200, ("decision", "/nobody", "allow", "allow_rule", None, "none")),
            (None, "/somebody", 403, ("decision", "/somebody", "deny", "no_allow_rule", None, "none")),
            (None, "/public/closed", 403, ("decision", "/public/closed", "deny", "deny_rule", None, "none")),
            (mutual, "/open", 200, ("decision", "/open", "allow", "allow_rule", CLIENT_ID, None)),
            (mutual, "/nobody", 403, ("decision", "/nobody", "deny", "no_allow_rule", CLIENT_ID, None)),
            (mutual, "/somebody", 200, ("decision", "/somebody", "allow", "allow_rule", CLIENT_ID, None)),
        ]
        for who, path, wanted, _ in expected:
            assert await status(who, path) == wanted, (who, path)
        assert [told(row) for row in await rows(mesh, len(expected))] == [record for *_, record in expected]


async def test_a_permissive_port_takes_no_bad_certificate_for_plaintext(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    set_mode(folder, "PERMISSIVE")
    async with RunningMesh(folder, state) as mesh:
        client, server = SpiffeId(CLIENT_ID), SpiffeId(SERVER_ID)
        authority = load_or_create(
            state / "ca", client.trust_domain, svid_for(state, CLIENT_ID).chain[0].not_valid_before_utc
        )
        other = context(tmp_path / "other", svid_of_another_authority(client))
        two_names = context(tmp_path / "two", svid_with_two_names(authority, client, server))
        assert await status(other, "/public") is None
        assert await status(context(tmp_path / "none", None), "/public") is None
        assert await status(two_names, "/public") == 403
        assert [(row["kind"], row["effect"], row["reason"]) for row in await rows(mesh, 3)] == [
            ("refusal", "deny", "certificate_refused"),
            ("refusal", "deny", "no_certificate"),
            ("decision", "deny", "peer_uri_sans"),
        ]


ATTEMPTS = [b"", OVERSIZE_CLIENT_HELLO, HTTP2_PREFACE, b"NO HTTP\r\n\r\n"]
REFUSED = ("refusal", None, "deny", "handshake_failed", None, None)
PLAINTEXT = ("refusal", None, "deny", "plaintext", None, None)
NO_HTTP = ("end", None, "deny", "http1.codec_error")


@pytest.mark.parametrize(
    ("mode", "recorded"),
    [
        ("STRICT", [REFUSED, REFUSED, PLAINTEXT, PLAINTEXT]),
        # A preface in plaintext is no request yet.
        ("PERMISSIVE", [REFUSED, REFUSED, (*NO_HTTP, None, "none")]),
    ],
)
async def test_what_is_neither_tls_nor_http_is_on_record(
    folder: Path, state: Path, tmp_path: Path, mode: str, recorded: list[tuple[Any, ...]]
) -> None:
    set_mode(folder, mode)
    async with RunningMesh(folder, state) as mesh:
        mutual = context(tmp_path / "client", svid_for(state, CLIENT_ID))
        for attempt in ATTEMPTS:
            await send(None, attempt)
        await send(mutual, b"NO HTTP\r\n\r\n")
        expected = [*recorded, (*NO_HTTP, CLIENT_ID, None)]
        assert [told(row) for row in await rows(mesh, len(expected))] == expected


async def test_in_plaintext_nobody_can_claim_to_be_somebody(folder: Path, state: Path) -> None:
    set_mode(folder, "PERMISSIVE")
    async with RunningMesh(folder, state):
        claim = f"By={SERVER_ID};URI={CLIENT_ID}"
        response = await attempt(None, "/public", x_forwarded_client_cert=claim)
        assert response is not None
        assert "x-forwarded-client-cert" not in response.json()["headers"]
        claimed = await attempt(None, "/open", x_forwarded_client_cert=claim)
        assert claimed is not None
        assert claimed.status == 403


async def test_a_disabled_port_takes_plaintext_only_and_callers_speak_it(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    set_mode(folder, "DISABLE")
    async with RunningMesh(folder, state) as mesh:
        mutual = context(tmp_path / "client", svid_for(state, CLIENT_ID))
        assert await status(None, "/public") == 200
        assert await status(mutual, "/public") is None
        through_the_sidecar = await ask(CLIENT, EGRESS_PORT, "GET", "/public")
        assert through_the_sidecar.status == 200
        assert (await ask(CLIENT, EGRESS_PORT, "GET", "/open")).status == 403, "the caller has no identity here"
        plain, tls, *through = [told(row) for row in await rows(mesh, 4)]
        assert plain == ("decision", "/public", "allow", "allow_rule", None, "none")
        assert tls == ("end", None, "deny", "http1.codec_error", None, "none")
        assert through == [
            ("decision", "/public", "allow", "allow_rule", None, "none"),
            ("decision", "/open", "deny", "no_allow_rule", None, "none"),
        ]
        database = await mesh.connect()
        now = datetime.now(UTC)
        report = await make_report(PLAINTEXT_REPORT, database, Span(now - timedelta(hours=1), now + timedelta(hours=1)))
        await database.close()
        counted = {(row[2], row[1], row[3], row[4]): row[5] for row in report.table("plaintext").rows}
        assert counted == {
            ("127.0.0.1", APPLICATION_PORT, "allow", "allow_rule"): 2,
            ("127.0.0.1", APPLICATION_PORT, "deny", "no_allow_rule"): 1,
            ("127.0.0.1", None, "deny", "http1.codec_error"): 1,
        }


SECOND = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: second, namespace: shop}
spec: {address: @ADDRESS@, labels: {app: server, shard: second}, serviceAccount: second}
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {name: second, namespace: shop}
spec: {workload: second, command: [python, @ECHO@], environment: {LISTEN: "@ADDRESS@:8080"}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: second, namespace: shop}
spec: {selector: {matchLabels: {shard: second}}, mtls: {mode: DISABLE}}
"""


async def test_callers_speak_to_each_workload_of_a_service_as_it_takes(folder: Path, state: Path) -> None:
    echo = Path(running.__file__).with_name("echo.py")
    (folder / "second.yaml").write_text(SECOND.replace("@ADDRESS@", "127.0.20.3").replace("@ECHO@", str(echo)))
    async with RunningMesh(folder, state) as mesh:
        for _ in range(8):
            assert (await ask(CLIENT, EGRESS_PORT, "GET", "/public")).status == 200
        database = await mesh.connect()

        async def seen() -> set[tuple[Any, ...]] | None:
            found = await database.fetch("SELECT * FROM requests WHERE effect = 'allow'")
            who = {
                tuple(row[name] for name in ("owner", "source_principal", "connection_security_policy"))
                for row in found
            }
            return who if len(found) == 8 else None

        assert await eventually(seen, "eight rows") == {
            (SERVER_ID, CLIENT_ID, None),
            ("spiffe://cluster.local/ns/shop/sa/second", None, "none"),
        }
        await database.close()


async def test_one_port_of_a_strict_workload_may_take_plaintext(folder: Path, state: Path, tmp_path: Path) -> None:
    ports, listen = f"targetPort: {APPLICATION_PORT}}}", f"{SERVER}:{APPLICATION_PORT}"
    other = f"{{port: {OTHER_PORT}, targetPort: {OTHER_APPLICATION_PORT}}}"
    text = (folder / "mesh.yaml").read_text().replace(f"{ports}]", f"{ports}, {other}]")
    (folder / "mesh.yaml").write_text(text.replace(listen, f"{listen},{SERVER}:{OTHER_APPLICATION_PORT}"))
    set_mode(folder, "STRICT", f", portLevelMtls: {{{OTHER_APPLICATION_PORT}: {{mode: PERMISSIVE}}}}")
    async with RunningMesh(folder, state) as mesh:
        mutual = context(tmp_path / "client", svid_for(state, CLIENT_ID))
        assert await status(None, "/public") is None
        assert await status(mutual, "/public") == 200
        assert await status(None, "/public", OTHER_PORT) == 200
        assert await status(mutual, "/public", OTHER_PORT) == 200
        found = [(row["kind"], row["effect"], row["reason"], row["destination_port"]) for row in await rows(mesh, 4)]
        assert found == [
            ("refusal", "deny", "plaintext", None),
            ("decision", "allow", "allow_rule", APPLICATION_PORT),
            ("decision", "allow", "allow_rule", OTHER_APPLICATION_PORT),
            ("decision", "allow", "allow_rule", OTHER_APPLICATION_PORT),
        ]


async def test_a_running_mesh_goes_to_permissive_and_back(folder: Path, state: Path) -> None:
    set_mode(folder, "STRICT")
    async with RunningMesh(folder, state):
        mutual = await Connection.open(CLIENT, EGRESS_PORT)
        assert (await mutual.ask("GET", "/open")).status == 200
        assert await status(None, "/public") is None
        set_mode(folder, "PERMISSIVE")

        async def is_taken() -> bool:
            return await status(None, "/public") == 200

        await eventually(is_taken, "plaintext is taken")
        assert (await mutual.ask("GET", "/open")).status == 200
        kept = await Connection.open(SERVER, SIDECAR_PORT)
        assert (await kept.ask("GET", "/public")).status == 200
        set_mode(folder, "STRICT")

        async def is_refused() -> bool:
            return await status(None, "/public") is None

        async def is_refused_where_it_was_taken() -> bool:
            return (await kept.ask("GET", "/public")).status == 403

        await eventually(is_refused, "plaintext is refused")
        await eventually(is_refused_where_it_was_taken, "on a connection from before, too", 2)
        assert (await mutual.ask("GET", "/open")).status == 200
        kept.close()
        mutual.close()
