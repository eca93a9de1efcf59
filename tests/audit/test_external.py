"""A PostgreSQL that others run: which URLs are taken, and that a real one is used with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.running import eventually
from support.starts import take_in

from peltast.audit.chain import verify_store
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE, migrate
from peltast.audit.store.url import DatabaseUnusable, as_role, check_database_url, with_password, without_password
from peltast.cli.external import ExternalPostgres

VERIFIED = "sslmode=verify-full&sslrootcert=/ca.pem"
TAKEN = [
    "postgresql://owner@/audit?host=/run/postgresql",
    "postgresql://owner@localhost/audit",
    "postgres://owner@127.0.0.1:5433/audit",
    "postgresql://owner@[::1]:5433/audit",
    "postgresql://owner@%2Frun%2Fpostgresql/audit",
    f"postgresql://owner@db.example/audit?{VERIFIED}",
    f"postgresql://owner@a.example:1,b.example:2/audit?{VERIFIED}",
    f"postgresql://owner@/audit?host=db.example&{VERIFIED}",
]
REFUSED = [
    ("postgresql://owner@db.example/audit", "db.example is another host; add sslmode=verify-full"),
    ("postgresql://owner@10.0.0.7/audit?sslmode=require", "10.0.0.7 is another host"),
    ("postgresql://owner@[2001:db8::7]/audit?sslmode=verify-ca", "2001:db8::7 is another host"),
    ("postgresql://owner@localhost,db.example/audit", "db.example is another host"),
    ("postgresql://owner@localhost/audit?host=db.example", "db.example is another host"),
    ("postgresql://owner@localhost.example/audit", "localhost.example is another host"),
    ("postgresql://owner@127.0.0.1.example/audit", "127.0.0.1.example is another host"),
    ("postgresql://owner@127.0.0.1@db.example/audit", "db.example is another host"),
    ("postgresql://owner@db.example/audit?sslmode=disable&sslmode=verify-full", "an option is given twice"),
    ("postgresql://owner@localhost/audit?service=prod", "the host is expected in the URL"),
    ("postgresql:///audit", "the host is expected in the URL"),
    ("postgresql://owner@/audit", "the host is expected in the URL"),
    ("postgresql://owner@localhost,/audit", "the host is expected in the URL"),
    ("mysql://owner:secret@localhost/audit", "a URL such as postgresql://"),
    ("host=db.example dbname=audit password=secret", "a URL such as postgresql://"),
]


@pytest.mark.parametrize("url", TAKEN)
def test_a_url_that_is_safe_is_taken(url: str) -> None:
    assert check_database_url(url) == url


@pytest.mark.parametrize(("url", "said"), REFUSED)
def test_a_url_that_is_not_is_refused_with_what_to_do(url: str, said: str) -> None:
    with pytest.raises(DatabaseUnusable, match=re.escape(said)) as error:
        check_database_url(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://o:secret@h:1/d?sslmode=require", "postgresql://o@h:1/d?sslmode=require"),
        ("postgresql://o@h/d?password=secret&sslpassword=secret", "postgresql://o@h/d"),
        ("postgresql://o:secret@a,b/d", "postgresql://o@a,b/d"),
        ("postgresql://h/d", "postgresql://h/d"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_another_role_has_the_same_way_and_a_password_of_its_own() -> None:
    url = f"postgresql://owner:secret@db.example:5433/audit?{VERIFIED}&sslcert=/c&sslkey=/k&user=x&password=secret"
    expected = f"postgresql://peltast_auditor@db.example:5433/audit?{VERIFIED}&passfile=/state/p"
    assert as_role(url, "peltast_auditor", "/state/p") == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://o@h/d", "postgresql://o:p%2F%40@h/d"),
        ("postgresql://o:mine@h/d", "postgresql://o:mine@h/d"),
    ],
)
def test_a_password_of_the_environment_is_used_where_the_url_has_none(url: str, expected: str) -> None:
    assert with_password(url, "p/@") == expected


# A real server with TLS -----------------------------------------------------------------------------------------------


@dataclass
class TlsServer:
    """A PostgreSQL that asks for passwords, reached at 127.0.0.1 by TLS only, with a certificate for that address.

    The wheel's PostgreSQL is built without TLS: so it is spoken in front of it, as poolers do.
    """

    port: int
    folder: Path

    def url(self, authority: str = "ca.pem", host: str = "127.0.0.1", password: str = "secret") -> str:
        options = f"sslmode=verify-full&sslrootcert={self.folder / authority}"
        return f"postgresql://{SUPERUSER}:{password}@{host}:{self.port}/postgres?{options}"


def certificate(folder: Path, name: str, address: str) -> None:
    """An authority NAME.pem, and in NAME-server.pem and .key what it signed for `address`."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)

    def build(subject: str, of: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(
            issuer, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]), of.public_key(),
            x509.random_serial_number(), now - timedelta(1), now + timedelta(1),
        )  # fmt: skip
        signed = builder.add_extension(extension, critical=True).sign(authority, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    (folder / f"{name}.pem").write_bytes(build(name, authority, x509.BasicConstraints(ca=True, path_length=0)))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    (folder / f"{name}-server.pem").write_bytes(build("server", key, names))
    private = folder / f"{name}-server.key"
    private.touch(0o600)
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.fixture(scope="module")
def behind() -> Iterator[Path]:
    """The folder of the server's socket, and of certificates."""
    with tempfile.TemporaryDirectory(prefix="/tmp/pt") as name:
        folder = Path(name)
        certificate(folder, "ca", "127.0.0.1")
        certificate(folder, "other", "127.0.0.1")
        postgres = EmbeddedPostgres(folder / "data", folder)
        asyncio.run(postgres.prepare())
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(postgres.command(), stdout=log, stderr=log) as process,
        ):
            try:
                asyncio.run(_ask_for_passwords(postgres.url(SUPERUSER), folder / "data" / "pg_hba.conf"))
                yield folder
            finally:
                process.terminate()
                process.wait(30)


async def _ask_for_passwords(url: str, hba: Path) -> None:
    async def connected() -> asyncpg.Connection | None:
        try:
            return await asyncpg.connect(url)
        except (OSError, asyncpg.PostgresError):
            return None

    connection = await eventually(connected, "the server answers")
    await connection.execute(f"ALTER ROLE {SUPERUSER} PASSWORD 'secret'")
    hba.write_text("local all all scram-sha-256\n")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


@pytest.fixture
async def server(behind: Path) -> AsyncIterator[TlsServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(behind / "ca-server.pem", behind / "ca-server.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: SSLRequest (PostgreSQL's documentation, 54.2.11), a handshake, then bytes both ways."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            assert await reader.readexactly(8) == SSL_REQUEST, "it would have gone on in the clear"
            writer.write(b"S")
            await writer.start_tls(context)
            to_reader, to_writer = await asyncio.open_unix_connection(behind / ".s.PGSQL.5432")
            with contextlib.closing(to_writer):
                ways = [asyncio.create_task(each) for each in (pass_on(reader, to_writer), pass_on(to_reader, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield TlsServer(listening.sockets[0].getsockname()[1], behind)
    listening.close()


SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@pytest.fixture
async def external(server: TlsServer, tmp_path: Path) -> ExternalPostgres:
    external = ExternalPostgres(server.url(), tmp_path)
    owner = await asyncpg.connect(external.url(SUPERUSER))
    await migrate(owner)
    await external.set_passwords(owner)
    await owner.close()
    return external


async def test_a_store_elsewhere_takes_records_and_verifies_over_tls(
    external: ExternalPostgres, spool: Any, principal: str
) -> None:
    spool.append(path="/over/tls")
    collector = await asyncpg.connect(external.url(COLLECTOR_ROLE))
    assert await take_in(collector, spool.id, principal, spool.frames()) == 2
    await collector.close()
    auditor = await asyncpg.connect(external.url(AUDITOR_ROLE))
    assert await auditor.fetchval("SELECT path FROM records WHERE sequence = 2") == "/over/tls"
    assert (await verify_store(auditor)).sound
    await auditor.close()


async def test_passwords_are_kept_for_their_owner_only_and_stay(
    external: ExternalPostgres, server: TlsServer, tmp_path: Path
) -> None:
    kept = tmp_path / "database.pgpass"
    assert kept.stat().st_mode & 0o777 == 0o600
    before = kept.read_text()
    owner = await asyncpg.connect(external.url(SUPERUSER))
    await ExternalPostgres(server.url(), tmp_path).set_passwords(owner)
    assert kept.read_text() == before
    found = await owner.fetch("SELECT rolpassword FROM pg_authid WHERE rolname LIKE 'peltast_%'")
    assert all(row["rolpassword"].startswith("SCRAM-SHA-256$4096:") for row in found)
    assert not any(line.split(":")[-1] in external.url(AUDITOR_ROLE) for line in before.splitlines())
    await owner.close()


async def test_a_role_without_its_password_does_not_come_in(external: ExternalPostgres, server: TlsServer) -> None:
    url = server.url(password="guessed").replace(f"{SUPERUSER}:", f"{COLLECTOR_ROLE}:")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(url)


async def test_a_server_whose_certificate_is_of_another_authority_is_refused(server: TlsServer) -> None:
    with pytest.raises(OSError, match="certificate verify failed"):
        await asyncpg.connect(server.url(authority="other.pem"))


async def test_a_server_of_another_name_is_refused(server: TlsServer) -> None:
    """It is the right server by an address that its certificate does not name."""
    with pytest.raises(OSError, match=r"doesn.t match|not valid for"):
        await asyncpg.connect(server.url(host="localhost"))


def test_the_password_leaves_the_environment_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    external = ExternalPostgres("postgresql://owner@localhost/audit", tmp_path)
    assert "PGPASSWORD" not in os.environ
    assert external.url(SUPERUSER) == "postgresql://owner:secret@localhost/audit"
    assert "secret" not in external.url(COLLECTOR_ROLE)


# Migrations -----------------------------------------------------------------------------------------------------------


async def test_a_database_that_a_newer_peltast_migrated_is_refused(owner: asyncpg.Connection) -> None:
    await owner.execute("INSERT INTO migrations VALUES ('9999_later.sql', now())")
    try:
        with pytest.raises(DatabaseUnusable, match=r"the database has 9999_later\.sql: a newer Peltast migrated it"):
            await migrate(owner)
    finally:
        await owner.execute("DELETE FROM migrations WHERE name = '9999_later.sql'")


async def test_a_postgresql_that_is_too_old_is_refused(
    owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peltast.audit.store.migrate.OLDEST_VERSION", owner.get_server_version().major + 1)
    with pytest.raises(DatabaseUnusable, match="PostgreSQL 18: 19 or later is needed"):
        await migrate(owner)


async def test_an_owner_that_is_no_superuser_can_run_the_store(
    postgres: EmbeddedPostgres, owner: asyncpg.Connection, spool: Any, principal: str
) -> None:
    """With the rights that the documentation names."""
    await owner.execute("CREATE ROLE landlord LOGIN CREATEROLE BYPASSRLS")
    await owner.execute("GRANT peltast_collector, peltast_auditor TO landlord WITH ADMIN TRUE")
    await owner.execute("CREATE DATABASE rented OWNER landlord")
    try:
        connection = await asyncpg.connect(postgres.url("landlord").replace("/postgres?", "/rented?"))
        await migrate(connection)
        collector = await asyncpg.connect(postgres.url(COLLECTOR_ROLE).replace("/postgres?", "/rented?"))
        assert await collector.fetchval("SELECT ensure_partitions()") == 10
        assert await take_in(collector, spool.id, principal, spool.frames()) == 1
        await collector.close()
        assert await connection.fetchval("SELECT count(*) FROM records") == 1
        await connection.close()
    finally:
        await owner.execute("DROP DATABASE rented WITH (FORCE)")
        await owner.execute("DROP OWNED BY landlord; DROP ROLE landlord")
