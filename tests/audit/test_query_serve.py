"""`peltast audit serve`: who gets in, as whom, and what follows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from spiffe import SpiffeId, TrustDomain
from support.running import PELTAST, eventually
from support.starts import take_in
from typer.testing import CliRunner

from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE
from peltast.cli.audit.serve import caller_named
from peltast.cli.main import app
from peltast.identity.ca.authority import issue, make_root
from peltast.identity.certificates import pem, private_key_pem
from peltast.identity.svid import new_key_and_csr

Spool = Any

REQUESTS = "/v1/audit/requests"
MESH = TrustDomain("mesh.example")
DASHBOARD = "spiffe://mesh.example/ns/audit/sa/dashboard"


@pytest.fixture
def url(postgres: EmbeddedPostgres) -> str:
    return postgres.url(AUDITOR_ROLE)


@pytest.fixture
async def filled(collector: Any, spool: Spool, principal: str) -> Spool:
    spool.append(path="/a", effect="allow")
    spool.append(path="/b", effect="deny")
    await take_in(collector, spool.id, principal, spool.frames())
    return spool


@dataclass
class Served:
    process: asyncio.subprocess.Process
    said: list[str]


@asynccontextmanager
async def served(*arguments: str) -> AsyncIterator[Served]:
    """`peltast audit serve` until it is told to end, which it does in good order."""
    process = await asyncio.create_subprocess_exec(
        *PELTAST, "audit", "serve", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    run = Served(process, [])

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            run.said.append(line.decode())

    reading = asyncio.create_task(read())
    try:
        await eventually(lambda: any("Serving at" in line for line in run.said) or process.returncode, "it serves")
        assert process.returncode is None, run.said
        yield run
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0, run.said
    finally:
        if process.returncode is None:
            process.kill()
        await reading


def by_socket(state: Path) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(state / "run" / "audit.sock"))
    return httpx.AsyncClient(transport=transport, base_url="http://audit", timeout=30)


# A Unix socket --------------------------------------------------------------------------------------------------------


async def test_by_default_only_the_user_is_served(state: Path, url: str, filled: Spool) -> None:
    path = state / "run" / "audit.sock"
    async with served("--state", str(state), "--database", url) as run:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with by_socket(state) as client:
            page = (await client.get(REQUESTS, params={"columns": "path"})).json()
            assert page == {"rows": [{"path": "/b"}, {"path": "/a"}], "next": None}
            assert (await client.post(REQUESTS)).status_code == 405
        assert await raw(path, b"GET %s?path=%s HTTP/1.1" % (REQUESTS.encode(), b"%C3%A9" * 65_536)) == 200
        assert await raw(path, b"GET %s?path=%s HTTP/1.1" % (REQUESTS.encode(), b"%C3%A9" * 200_000)) == 400
        assert await raw(path, b"GET\0 \xff") == 400
        await eventually(lambda: any("audit.query" in line for line in run.said), "what was asked is logged")
        [first] = [line for line in run.said if "audit.query" in line][:1]
        assert f"caller=uid:{os.geteuid()}" in first
        assert '"columns' in first
        again = await asyncio.to_thread(CliRunner().invoke, app, ["audit", "serve", "--state", str(state)])
        assert (again.exit_code, "is served already" in again.stderr) == (1, True)
    assert not path.exists()


async def raw(path: Path, line: bytes) -> int:
    """The status of the answer to a request with this first line."""
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line + b"\r\nhost: audit\r\nconnection: close\r\n\r\n")
        status = int((await reader.readline()).split()[1])
        writer.close()
    return status


async def test_a_socket_that_a_killed_one_left_is_taken_over(state: Path, url: str, filled: Spool) -> None:
    left = socket.socket(socket.AF_UNIX)
    (state / "run").mkdir()
    left.bind(str(state / "run" / "audit.sock"))
    left.close()
    async with served("--state", str(state), "--database", url), by_socket(state) as client:
        assert (await client.get(REQUESTS)).status_code == 200


async def test_events_come_as_rows_are_stored_and_go_on_where_they_ended(
    state: Path, url: str, filled: Spool, collector: Any, owner: Any, principal: str
) -> None:
    accept = {"accept": "text/event-stream"}
    async with served("--state", str(state), "--database", url), by_socket(state) as client:
        async with client.stream("GET", f"{REQUESTS}?columns=path", headers=accept) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = response.aiter_lines()
            assert await anext(events) == ":", "it follows from here on"
            filled.append(path="/c\ndata: forged", effect="allow")
            await take_in(collector, filled.id, principal, filled.frames())
            first = await until_data(events)
            await owner.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", AUDITOR_ROLE
            )
            filled.append(path="/d", effect="allow")
            await take_in(collector, filled.id, principal, filled.frames())
            second = await until_data(events)
        assert [first[1], second[1]] == [{"path": "/c\ndata: forged"}, {"path": "/d"}]
        for last, expected in ((str(first[0]), "/d"), ("-1", None), ("9" * 40, None)):
            resumed = {**accept, "last-event-id": last}
            async with client.stream("GET", f"{REQUESTS}?columns=path", headers=resumed) as response:
                assert response.status_code == (200 if expected else 400)
                if expected:
                    assert (await until_data(response.aiter_lines()))[1] == {"path": expected}
        refused = await client.get(REQUESTS, params={"until": "1h"}, headers=accept)
        assert (refused.status_code, refused.json()["parameter"]) == (400, "until")


async def until_data(events: AsyncIterator[str]) -> tuple[int, Any]:
    number = -1
    async with asyncio.timeout(20):
        async for line in events:
            if line.startswith("id: "):
                number = int(line[4:])
            if line.startswith("data: "):
                return number, json.loads(line[6:])
    raise AssertionError("the stream ended")


# Mutual TLS -----------------------------------------------------------------------------------------------------------


class Certificates:
    """An authority in `folder`, and what it issues."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = make_root(MESH, datetime.now(UTC))
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(pem(*self.root.chain))

    def svid(self, spiffe_id: str) -> tuple[Path, Path]:
        key, csr = new_key_and_csr()
        [leaf, *_] = issue(self.root, csr, SpiffeId(spiffe_id), datetime.now(UTC))
        return self._write(key, leaf)

    def named(self, *names: str, uris: tuple[str, ...] = ()) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        return self._write(key, self.certificate(key, *names, uris=uris))

    def certificate(self, key: ec.EllipticCurvePrivateKey, *names: str, uris: tuple[str, ...] = ()) -> x509.Certificate:
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names])
        sans = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.root.chain[0].subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
        )
        return (builder.add_extension(sans, False) if uris else builder).sign(self.root.key, hashes.SHA256())

    def _write(self, key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate) -> tuple[Path, Path]:
        certificate, private = (self.folder / f"{leaf.serial_number}.{part}" for part in ("pem", "key"))
        certificate.write_bytes(pem(leaf))
        private.write_bytes(private_key_pem(key))
        return certificate, private

    def client(self, port: int, files: tuple[Path, Path] | None) -> httpx.AsyncClient:
        context = ssl.create_default_context(cafile=self.ca)
        context.check_hostname = False  # the server's name here is a SPIFFE ID
        if files:
            context.load_cert_chain(*files)
        return httpx.AsyncClient(verify=context, base_url=f"https://127.0.0.1:{port}", timeout=30)


@pytest.fixture
async def blind(owner: asyncpg.Connection) -> AsyncIterator[str]:
    """A role that may read nothing."""
    await owner.execute("CREATE ROLE blind NOLOGIN")
    yield "blind"
    await owner.execute("DROP ROLE blind")


async def test_clients_are_who_their_certificates_say_with_the_rights_of_their_roles(
    state: Path, postgres: EmbeddedPostgres, filled: Spool, tmp_path: Path, blind: str
) -> None:
    issued = Certificates(tmp_path)
    certificate, key = issued.svid("spiffe://mesh.example/peltast/audit")
    arguments = [
        *("--state", str(state), "--database", postgres.url(SUPERUSER), "--listen", "127.0.0.1:0"),
        *("--certificate", str(certificate), "--key", str(key), "--client-ca", str(issued.ca)),
        *("--role", f"{DASHBOARD}={AUDITOR_ROLE}", "--role", f"jane={AUDITOR_ROLE}", "--role", f"joe={blind}"),
    ]
    callers = [
        (issued.svid(DASHBOARD), 200, None),
        (issued.named("jane"), 200, None),
        (issued.named("joe"), 403, "the store refuses your role"),
        (issued.svid(DASHBOARD + "2"), 403, "has no role here"),
        (issued.named("mallory"), 403, "has no role here"),
        (issued.named("jane", uris=(DASHBOARD, DASHBOARD)), 403, "has no role here"),
    ]
    async with served(*arguments) as run:
        [port] = [int(line.rpartition(":")[2]) for line in run.said if "Serving at" in line]
        for files, status, says in callers:
            async with issued.client(port, files) as client:
                answer = await client.get(REQUESTS)
                assert answer.status_code == status, answer.text
                assert says is None or says in answer.json()["detail"]
        for files in (None, Certificates(tmp_path).named("jane")):
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                async with issued.client(port, files) as client:
                    await client.get(REQUESTS)
        assert any(f"caller={DASHBOARD} role={AUDITOR_ROLE}" in line for line in run.said)


@pytest.mark.parametrize(
    ("names", "uris", "name"),
    [
        (("jane",), (), "jane"),
        ((), (DASHBOARD,), DASHBOARD),
        (("jane",), (DASHBOARD,), DASHBOARD),
        ((DASHBOARD,), (), None),
        (("jane", "joe"), (), None),
        ((), (), None),
        (("jane",), ("https://mesh.example",), None),
        (("jane",), (DASHBOARD, DASHBOARD + "2"), None),
    ],
)
def test_a_certificate_has_one_name(
    tmp_path: Path, names: tuple[str, ...], uris: tuple[str, ...], name: str | None
) -> None:
    certificate = Certificates(tmp_path).certificate(ec.generate_private_key(ec.SECP256R1()), *names, uris=uris)
    caller = caller_named({DASHBOARD: "one", "jane": "two", "joe": "three"}, certificate)
    assert (caller.known, caller.name if caller.known else None) == (name is not None, name)
    assert caller.role == {DASHBOARD: "one", "jane": "two", None: None}[name]


REFUSED = [
    (("--listen", "127.0.0.1:0"), "needs --certificate, --key and --client-ca"),
    (("--role", "jane=auditor"), "are for --listen"),
    (("--listen", "127.0.0.1:0", "--role", "jane"), "--role: 'jane' is given; allowed: NAME=ROLE"),
    (("--listen", "127.0.0.1:0", "--role", 'jane=a"; DROP'), "allowed: NAME=ROLE"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED)
def test_what_is_not_safe_is_not_served(state: Path, arguments: tuple[str, ...], says: str) -> None:
    refused = CliRunner().invoke(app, ["audit", "serve", "--state", str(state), *arguments])
    assert refused.exit_code == 1
    assert says in refused.stderr
