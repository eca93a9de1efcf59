from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from moto.server import ThreadedMotoServer
from support.starts import take_in

from peltast.audit.checkpoint import Signer, open_checkpoint
from peltast.audit.collector import checkpoints as module
from peltast.audit.collector.checkpoints import Checkpoints, Publisher, sign_tree
from peltast.audit.s3 import S3
from peltast.audit.sinks import Folder, Published, SinkFailed, Syslog, sink_of, source_of
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import COLLECTOR_ROLE
from peltast.authz._engine import tree_root

Connection = asyncpg.Connection

SIGNER = Signer("peltast.dev/audit/mesh.example", Ed25519PrivateKey.from_private_bytes(b"k" * 32))
DEADLINE_SECONDS = 10.0


def published(size: int, root: bytes = b"r" * 32) -> Published:
    return Published(size, root, datetime(2026, 11, 22, 1, 2, 3, 456789, tzinfo=UTC), SIGNER.sign(size, root))


@pytest.fixture
async def pool(postgres: EmbeddedPostgres, owner: Connection) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(postgres.url(COLLECTOR_ROLE), min_size=0, max_size=4) as pool:
        yield pool


async def grow(pool: asyncpg.Pool, spool: Any, principal: str) -> int:
    """One record more; gives the tree's size."""
    spool.append()
    async with pool.acquire() as connection:
        return await take_in(connection, spool.id, principal, spool.frames())


async def stored_notes(owner: Connection) -> list[str]:
    return [row["note"] for row in await owner.fetch("SELECT note FROM checkpoints ORDER BY size")]


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# Signing --------------------------------------------------------------------------------------------------------------


async def test_a_tree_that_grew_is_signed_once(
    pool: asyncpg.Pool, owner: Connection, spool: Any, principal: str
) -> None:
    await sign_tree(pool, SIGNER)
    assert await stored_notes(owner) == []
    for size in (2, 3):
        assert await grow(pool, spool, principal) == size
        await sign_tree(pool, SIGNER)
        await sign_tree(pool, SIGNER)
    first, second = (open_checkpoint(note, SIGNER.verifier_key) for note in await stored_notes(owner))
    assert (first.size, second.size) == (2, 3)
    tree = await owner.fetchrow("SELECT tree.size, frontier, root FROM tree JOIN checkpoints USING (size)")
    assert tree is not None
    assert second.root == tree["root"] == tree_root(tree["size"], tree["frontier"])


async def test_what_came_last_is_signed_and_published_at_the_end(
    pool: asyncpg.Pool, owner: Connection, spool: Any, principal: str, tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "checkpoints")
    checkpoints = Checkpoints(pool, SIGNER, [Publisher("folder", folder, tmp_path / "place")])
    await grow(pool, spool, principal)
    running = asyncio.create_task(checkpoints.run())
    await until(lambda: stored_notes(owner))
    await grow(pool, spool, principal)
    running.cancel()
    await asyncio.wait([running])
    await checkpoints.finish()
    assert list((await folder.notes()).values()) == await stored_notes(owner)
    assert len(await stored_notes(owner)) == 2


# Publishing -----------------------------------------------------------------------------------------------------------


class Failing:
    """A sink that does not take what it is given while it is `away`."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.tried, self.took = asyncio.Event(), asyncio.Event()
        self.away = False

    async def put(self, checkpoint: Published) -> None:
        self.tried.set()
        if self.away:
            raise SinkFailed("away")
        self.taken.append(checkpoint.size)
        self.took.set()


@pytest.fixture
def failing() -> Failing:
    return Failing()


async def sign(owner: Connection, *sizes: int, root: bytes = b"r" * 32) -> None:
    for size in sizes:
        query = "INSERT INTO checkpoints (size, root, note) VALUES ($1, $2, $3)"
        await owner.execute(query, size, root, SIGNER.sign(size, root))


async def test_what_a_sink_missed_comes_later_in_order(
    pool: asyncpg.Pool, owner: Connection, failing: Failing, tmp_path: Path
) -> None:
    publisher = Publisher("failing", failing, tmp_path / "place")
    await sign(owner, 1)
    await publisher.catch_up(pool)
    failing.away = True
    await sign(owner, 7, 3)
    with pytest.raises(SinkFailed):
        await publisher.catch_up(pool)
    failing.away = False
    # Another process goes on where the one before stopped.
    await Publisher("failing", failing, tmp_path / "place").catch_up(pool)
    assert failing.taken == [1, 3, 7]


async def test_a_sink_that_fails_is_told_of_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pool: asyncpg.Pool,
    owner: Connection,
    failing: Failing,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_SECONDS", 0.01)
    failing.away = True
    other = Failing()
    publishers = [Publisher(name, sink, tmp_path / name) for name, sink in (("bad", failing), ("good", other))]
    await sign(owner, 1)
    running = asyncio.create_task(Checkpoints(pool, SIGNER, publishers).run())
    try:
        await asyncio.wait_for(other.took.wait(), DEADLINE_SECONDS)
        await asyncio.wait_for(failing.tried.wait(), DEADLINE_SECONDS)
        failing.away = False
        await asyncio.wait_for(failing.took.wait(), DEADLINE_SECONDS)
    finally:
        running.cancel()
        await asyncio.wait([running])
    told = capsys.readouterr().out
    assert "checkpoints cannot be published" in told
    assert "bad" in told
    assert "good" not in told


async def test_after_a_backup_was_restored_the_other_tree_is_published_too(
    pool: asyncpg.Pool, owner: Connection, tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "checkpoints")
    publisher = Publisher("folder", folder, tmp_path / "place")
    await sign(owner, 1, 2, 3)
    await publisher.catch_up(pool)
    await owner.execute("DELETE FROM checkpoints WHERE size > 1")
    await sign(owner, 2, root=b"x" * 32)
    await publisher.catch_up(pool)
    assert [name[18:22] for name in await folder.notes()] == ["01-7", "02-7", "02-7", "03-7"]


# Sinks ----------------------------------------------------------------------------------------------------------------


async def test_a_folder_keeps_each_checkpoint_in_a_file(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a" / "b")
    given = [published(5), published(300), published(5)]
    for checkpoint in given:
        await folder.put(checkpoint)
    assert await folder.notes() == {given[0].name: given[0].note, given[1].name: given[1].note}
    assert sorted(file.name for file in folder.path.iterdir()) == [given[0].name, given[1].name]


async def test_a_folder_writes_over_nothing(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (tmp_path / published(5).name).write_text("was here")
    await folder.put(published(5))
    assert await folder.notes() == {published(5).name: "was here"}


async def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkFailed, match="file"):
        await Folder(tmp_path / "file").put(published(5))


def tls(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context, and the certificate that its clients trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = builder.add_extension(names, False).sign(key, hashes.SHA256())
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*form))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, private)
    return context, pem


@asynccontextmanager
async def receiver(context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, asyncio.Queue[bytes]]]:
    """A syslog receiver: the port, and what comes over each connection."""
    received: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.put_nowait(await reader.read())
        writer.close()

    async with await asyncio.start_server(receive, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], received


@pytest.mark.parametrize("kind", ["syslog", "syslog+tls"])
async def test_syslog_gets_a_message_of_rfc_5424(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, trusted = tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    async with receiver(context if kind == "syslog+tls" else None) as (port, received):
        await sink_of(f"{kind}:localhost:{port}", {}).put(published(300))
        frame = await asyncio.wait_for(received.get(), DEADLINE_SECONDS)
    length, _, message = frame.partition(b" ")
    assert int(length) == len(message)
    head = re.match(rb"<109>1 2026-11-22T01:02:03\.456Z \S+ peltast \d+ checkpoint - ", message)
    assert head is not None
    assert json.loads(message[head.end() :]) == {"size": 300, "root": "72" * 32, "note": published(300).note}


async def test_syslog_over_tls_is_not_told_to_a_stranger(tmp_path: Path) -> None:
    context, _ = tls(tmp_path)
    async with receiver(context) as (port, _):
        with pytest.raises(SinkFailed, match="CERTIFICATE_VERIFY_FAILED"):
            await sink_of(f"syslog+tls:localhost:{port}", {}).put(published(300))


async def test_syslog_that_is_away_says_so() -> None:
    async with receiver() as (port, _):
        pass
    with pytest.raises(SinkFailed, match=f"syslog 127.0.0.1:{port}"):
        await sink_of(f"syslog:127.0.0.1:{port}", {}).put(published(300))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """moto's S3, over HTTP on this machine; the environment that leads there."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield environment
    server.stop()


async def test_s3_keeps_each_checkpoint_in_an_object(s3: dict[str, str]) -> None:
    sink = source_of("s3://audit/mesh/checkpoints", s3)
    assert isinstance(sink, S3)
    await asyncio.to_thread(sink.client.make_bucket, "audit")
    for checkpoint in (published(300), published(5), published(5)):
        await sink.put(checkpoint)
    await source_of("s3://audit", s3).put(published(7))
    assert await sink.notes() == {f"mesh/checkpoints/{each.name}": each.note for each in (published(5), published(300))}


async def test_s3_without_the_bucket_says_so(s3: dict[str, str]) -> None:
    with pytest.raises(SinkFailed, match="NoSuchBucket"):
        await sink_of("s3://missing/prefix", s3).put(published(5))


async def test_s3_that_is_away_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    async with receiver() as (port, _):
        pass
    with pytest.raises(SinkFailed, match="S3: "):
        await sink_of("s3://audit/prefix", {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}).put(published(5))


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("", "is no place for checkpoints"),
        ("folder", "is no place to read"),
        ("folder:", "is no place to read"),
        ("ftp://here", "folder:PATH, s3://BUCKET/PREFIX, syslog:HOST:PORT"),
        ("s3:///prefix", "names no bucket"),
        ("syslog:here", "does not end in HOST:PORT"),
        ("syslog:here:0", "does not end in HOST:PORT"),
        ("syslog:here:65536", "does not end in HOST:PORT"),
        ("syslog+tls::514", "does not end in HOST:PORT"),
    ],
)
def test_a_word_that_names_no_sink_is_refused(word: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        sink_of(word, {})


def test_words_name_sinks() -> None:
    assert sink_of("folder:/var/checkpoints", {}) == Folder(Path("/var/checkpoints"))
    assert sink_of("syslog:[::1]:514", {}) == Syslog("::1", 514, None)
