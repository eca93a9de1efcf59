"""Exports: every record at least once and in order, whatever happens to whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.https import HttpsServer
from support.receivers import RSYSLOGD, HttpServer, Rsyslog, rejecting, rotel, rotel_running, until
from support.rows import row
from support.starts import take_in

from peltast.audit.export import send
from peltast.audit.export.cursor import Cursor, Taken, open_cursor, standings
from peltast.audit.export.http import OtlpReceiver, retry_after_seconds
from peltast.audit.export.lines import FileReceiver
from peltast.audit.export.receiver import Entry, Receiver, Refused, Unavailable
from peltast.audit.export.syslog import SyslogReceiver, message
from peltast.audit.export.target import InvalidTarget, Trust, open_receiver, read_secret
from peltast.audit.ocsf import event
from peltast.audit.store.migrate import EXPORTER_ROLE

Connection = asyncpg.Connection

DEADLINE_SECONDS = 60.0
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
needs_rsyslog = pytest.mark.skipif(RSYSLOGD is None, reason="rsyslogd is not installed")


@pytest.fixture
async def exporter(postgres: Any, owner: Connection) -> AsyncIterator[Connection]:
    """A connection with an exporter's rights."""
    connection = await asyncpg.connect(postgres.url(EXPORTER_ROLE))
    yield connection
    await connection.close()


@pytest.fixture
def ship(collector: Connection, spool: Any, principal: str) -> Callable[..., Any]:
    async def ship(number: int, **fields: Any) -> None:
        for index in range(number):
            spool.append(method="GET", path=f"/{index}", effect="allow", status=200, **fields)
        await take_in(collector, spool.id, principal, spool.frames())

    return ship


def entry(**fields: Any) -> Entry:
    made = row(**fields)
    return Entry(made, event(made, "0.1.0"))


def leaves(events: Iterable[dict[str, Any]]) -> list[int]:
    return [each["metadata"]["sequence"] for each in events]


def is_complete(found: list[int], size: int) -> bool:
    """Whether every leaf is there, and came first after all before it."""
    return list(dict.fromkeys(found)) == list(range(size))


# The cursor -----------------------------------------------------------------------------------------------------------


async def test_a_new_export_begins_with_the_first_record_and_goes_on_where_it_was(
    exporter: Connection, ship: Any
) -> None:
    await ship(3)
    cursor = await open_cursor(exporter, "siem", None)
    rows = await cursor.read()
    assert [(row["leaf"], row["kind"]) for row in rows] == [
        (0, "genesis"), (1, "decision"), (2, "decision"), (3, "decision"),
    ]  # fmt: skip
    await cursor.advance(2)
    assert [row["leaf"] for row in await (await open_cursor(exporter, "siem", None)).read()] == [2, 3]
    [standing] = await standings(exporter)
    assert (standing.name, standing.leaf, standing.lag) == ("siem", 2, 2)


async def test_since_is_where_a_new_export_begins_and_nothing_for_one_that_has_begun(
    exporter: Connection, spool: Any, ship: Any
) -> None:
    await ship(3)
    third = datetime.fromtimestamp(spool.clock / 1e9, UTC) - timedelta(microseconds=1)
    assert (await open_cursor(exporter, "late", third)).leaf == 2
    assert (await open_cursor(exporter, "later", third + timedelta(days=1))).leaf == 4
    with pytest.raises(Taken, match="has sent everything before record 2"):
        await open_cursor(exporter, "late", third)


async def test_an_export_runs_once_at_a_time(exporter: Connection, auditor: Connection, postgres: Any) -> None:
    await open_cursor(exporter, "siem", None)
    second = await asyncpg.connect(postgres.url(EXPORTER_ROLE))
    try:
        with pytest.raises(Taken, match="running already"):
            await open_cursor(second, "siem", None)
        await open_cursor(second, "another", None)
    finally:
        await second.close()


async def test_a_batch_is_bounded_in_bytes_and_has_a_record_at_least(exporter: Connection, ship: Any) -> None:
    await ship(2, detail="x" * 700_000)
    cursor = await open_cursor(exporter, "siem", None)
    sizes = []
    while rows := await cursor.read():
        sizes.append(len(rows))
        await cursor.advance(rows[-1]["leaf"] + 1)
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    "act",
    [
        "DELETE FROM records",
        "UPDATE records SET effect = 'allow'",
        "DELETE FROM exports",
        "UPDATE exports SET name = 'x'",
        "INSERT INTO records DEFAULT VALUES",
        "SELECT * FROM spools",
    ],
)
async def test_an_exporter_reads_and_moves_its_place_and_may_do_nothing_else(exporter: Connection, act: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await exporter.execute(act)


# The loop -------------------------------------------------------------------------------------------------------------


class Flaky:
    """A receiver that does what it is told, one thing a batch, and then takes everything."""

    def __init__(self, cursor: Cursor, *failures: Exception) -> None:
        self.cursor = cursor
        self.failures = list(failures)
        self.got: list[tuple[int, int]] = []

    async def send(self, entries: list[Entry]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.got += [(each.row["leaf"], self.cursor.leaf) for each in entries]

    async def close(self) -> None: ...


async def test_the_cursor_waits_for_the_receiver(exporter: Connection, ship: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(send, "_RETRY_SECONDS", (0.0,))
    await ship(1)
    cursor = await open_cursor(exporter, "siem", None)
    receiver = Flaky(cursor, Unavailable("away"), Unavailable("busy", 0.01))
    assert await send.send_all(cursor, receiver, "0.1.0", once=True) == 2
    assert receiver.got == [(0, 0), (1, 0)]
    assert cursor.leaf == 2


async def test_what_is_refused_is_not_passed_over(exporter: Connection, ship: Any) -> None:
    await ship(1)
    cursor = await open_cursor(exporter, "siem", None)
    with pytest.raises(Refused, match="no"):
        await send.send_all(cursor, Flaky(cursor, Refused("no")), "0.1.0", once=True)
    assert [each.leaf for each in await standings(exporter)] == [0]


# Syslog ---------------------------------------------------------------------------------------------------------------


def test_a_message_is_of_rfc_5424() -> None:
    made = entry(kind="decision", effect="deny", reason="no_allow_rule", method="GET", path="/\u00e9\n\0<", leaf=2**31)
    text = message(made, "collector-1").decode("ascii")
    head, _, body = text.partition("] {")
    assert head + "]" == (
        "<108>1 2026-11-22T00:00:01.234567Z collector-1 peltast - decision "
        '[origin software="peltast" swVersion="0.1.0"][meta sequenceId="2"]'
    )
    assert json.loads("{" + body) == made.event
    assert not set(text) & set("\n\r\0")


@pytest.mark.parametrize(
    ("fields", "priority"), [({"effect": "allow"}, 110), ({"effect": "deny"}, 108), ({"kind": "dropped"}, 107)]
)
def test_the_priority_is_log_audit_and_how_severe_it_is(fields: dict[str, Any], priority: int) -> None:
    assert message(entry(**fields), "-").startswith(b"<%d>1 " % priority)


@needs_rsyslog
async def test_rsyslog_understands_every_message(tmp_path: Path, exporter: Connection, ship: Any) -> None:
    await ship(700, detail='quote " bracket ] back\\slash \u00fc\n', host="x" * 65_536)
    rsyslog = Rsyslog(tmp_path)
    with rsyslog.running():
        await sent(exporter, SyslogReceiver("127.0.0.1", rsyslog.port, None))
    assert leaves(rsyslog.events()) == list(range(701))
    assert rsyslog.lines()[1].startswith(
        '110 peltast decision [origin software="peltast" swVersion="0.1.0"][meta sequenceId="2"] {'
    )
    assert rsyslog.events()[1]["message"] == 'quote " bracket ] back\\slash \u00fc\n'


async def sent(connection: Connection, receiver: Receiver) -> int:
    cursor = await open_cursor(connection, "siem", None)
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await send.send_all(cursor, receiver, "0.1.0", once=True)


async def test_a_receiver_that_does_not_end_the_connection_has_nothing(monkeypatch: Any) -> None:
    monkeypatch.setattr("peltast.audit.export.syslog.TIMEOUT_SECONDS", 0.1)
    over = asyncio.Event()

    async def keeps_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    async def speaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # a socket that is closed with something unread resets the connection
        writer.write(b"hello")
        writer.close()

    for serve, error in ((keeps_open, "timed out"), (speaks, "says nothing")):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        with pytest.raises(Unavailable, match=error):
            await SyslogReceiver("127.0.0.1", server.sockets[0].getsockname()[1], None).send([entry()])
        server.close()
    over.set()


# HTTP -----------------------------------------------------------------------------------------------------------------


async def test_json_lines_are_posted_with_credentials_from_outside_the_url() -> None:
    async with HttpServer() as server:
        receiver = open_receiver(f"http://127.0.0.1:{server.port}/in", "siem", Trust())
        await receiver.send([entry(leaf=1), entry(leaf=2)])
        await receiver.close()
    assert leaves(map(json.loads, server.bodies[0].splitlines())) == [1, 2]
    assert "POST /in HTTP/1.1" in server.heads[0]
    assert "content-type: application/x-ndjson" in server.heads[0].lower()


async def test_a_log_record_of_opentelemetry() -> None:
    traced = entry(method="GET", path="/a", effect="deny", traceparent=f"00-{'a1' * 16}-{'b2' * 8}-01")
    async with HttpServer() as server:
        receiver = otlp(server)
        await receiver.send([traced, entry(kind="dropped", count=3)])
        await receiver.close()
    [request] = server.requests()
    [logs] = request.resource_logs
    assert {each.key: each.value.string_value for each in logs.resource.attributes} == {
        "service.name": "peltast", "service.version": "0.1.0",
    }  # fmt: skip
    first, second = logs.scope_logs[0].log_records
    assert (first.time_unix_nano, first.severity_number) == (1_795_305_601_234_567_891, 13)
    assert (first.trace_id.hex(), first.span_id.hex()) == ("a1" * 16, "b2" * 8)
    assert (first.event_name, second.event_name) == ("peltast.audit.decision", "peltast.audit.dropped")
    assert second.severity_number == 17
    assert plain(first.body) == traced.event
    assert "POST /v1/logs HTTP/1.1" in server.heads[0]


def otlp(server: HttpServer) -> Receiver:
    receiver = open_receiver(f"otlp+http://127.0.0.1:{server.port}", "siem", Trust())
    assert isinstance(receiver, OtlpReceiver)
    return receiver


def plain(value: Any) -> Any:
    match value.WhichOneof("value"):
        case "kvlist_value":
            return {each.key: plain(each.value) for each in value.kvlist_value.values}
        case "array_value":
            return [plain(each) for each in value.array_value.values]
        case name:
            return getattr(value, name)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        *((status, b"", Unavailable) for status in (429, 502, 503, 504)),
        *((status, b"", Refused) for status in (301, 400, 401, 404, 413, 500)),
        (200, rejecting(1), Refused),
        (200, b"\xff", Refused),
    ],
)
async def test_an_answer_other_than_yes_is_retried_if_opentelemetry_says_so(
    status: int, body: bytes, error: type[Exception]
) -> None:
    async with HttpServer() as server:
        server.answers.append((status, {}, body))
        receiver = otlp(server)
        with pytest.raises(error):
            await receiver.send([entry()])
        await receiver.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0), ("", 0.0), ("soon", 0.0), ("-1", 0.0), ("999999", 300.0),
        ("Sun, 22 Nov 2026 12:00:09 GMT", 9.0), ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0), ("1" * 5000, 300.0),
    ],
)  # fmt: skip
def test_retry_after(header: str, seconds: float) -> None:
    assert retry_after_seconds(header, NOON) == seconds


async def test_a_server_that_asks_to_wait_is_given_the_time(monkeypatch: Any, exporter: Any, ship: Any) -> None:
    monkeypatch.setattr(send, "_RETRY_SECONDS", (0.0,))
    await ship(2)
    async with HttpServer() as server:
        server.answers += [(503, {"retry-after": "1"}, b""), (429, {}, b"")]
        began = asyncio.get_running_loop().time()
        await sent(exporter, otlp(server))
        assert asyncio.get_running_loop().time() - began >= 1
    assert leaves(plain(each.body) for request in server.requests()
                  for each in request.resource_logs[0].scope_logs[0].log_records) == [0, 1, 2]  # fmt: skip


# Files ----------------------------------------------------------------------------------------------------------------


async def test_files_are_named_by_their_first_leaf_and_a_full_one_is_left(tmp_path: Path) -> None:
    receiver = FileReceiver(tmp_path, "siem", file_bytes=1)
    await receiver.send([entry(leaf=0), entry(leaf=1)])
    await receiver.send([entry(leaf=2)])
    assert {file.name: leaves(map(json.loads, file.read_text().splitlines())) for file in tmp_path.iterdir()} == {
        "siem-00000000000000000000.jsonl": [0, 1],
        "siem-00000000000000000002.jsonl": [2],
    }
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


async def test_a_line_that_was_torn_is_written_again(tmp_path: Path) -> None:
    await FileReceiver(tmp_path, "siem").send([entry(leaf=0)])
    [file] = tmp_path.iterdir()
    with file.open("ab") as opened:
        opened.write(b'{"metadata": {"sequ')
    await FileReceiver(tmp_path, "siem").send([entry(leaf=1)])
    assert leaves(map(json.loads, file.read_text().splitlines())) == [0, 1]


async def test_a_folder_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        await FileReceiver(tmp_path / "gone", "siem").send([entry()])


# Targets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://host/x", "the scheme 'ftp' is given"),
        ("host:514", "a URL with a host is expected"),
        ("https://ada:secret@host/", "which anybody could read"),
        ("file:///no/such/folder", "the folder must be there"),
        ("file://host/tmp", "file:///FOLDER is expected"),
        ("syslog+tcp://host:99999", "Port out of range"),
        ("otlp+http://host:x", "Port could not be cast"),
    ],
)
def test_a_target_that_cannot_be_is_refused(url: str, error: str) -> None:
    with pytest.raises(InvalidTarget, match=error) as refused:
        open_receiver(url, "siem", Trust())
    assert "secret" not in str(refused.value)


def test_credentials_go_over_tls_only() -> None:
    for scheme in ("http", "otlp+http"):
        with pytest.raises(InvalidTarget, match="https only"):
            open_receiver(f"{scheme}://host/", "siem", Trust(authorization="Bearer x"))
        assert open_receiver(f"{scheme}s://host/", "siem", Trust(authorization="Bearer x"))


def test_a_secret_that_others_may_read_is_none(tmp_path: Path) -> None:
    file = tmp_path / "authorization"
    file.write_text("Bearer x\n")
    file.chmod(0o640)
    with pytest.raises(InvalidTarget, match="mode 0640: others may read it; 0600 is expected"):
        read_secret(file)
    file.chmod(0o600)
    assert read_secret(file) == "Bearer x"
    with pytest.raises(InvalidTarget, match="No such file"):
        read_secret(tmp_path / "none")


# TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A folder with an authority, a certificate of it for 127.0.0.1 and its key."""
    folder = tmp_path / "tls"
    server = HttpsServer(folder, "")
    pem = (folder / "server.pem").read_text()
    key, _, certificate = pem.partition("-----BEGIN CERTIFICATE")
    (folder / "key.pem").write_text(key)
    (folder / "certificate.pem").write_text("-----BEGIN CERTIFICATE" + certificate)
    assert server.authority.exists()
    return folder


@needs_rsyslog
async def test_rsyslog_is_spoken_to_by_tls_if_it_is_who_it_should_be(
    tmp_path: Path, authority: Path, exporter: Connection, ship: Any
) -> None:
    await ship(3)
    rsyslog = Rsyslog(tmp_path, authority)
    with rsyslog.running():
        for trust, host in ((Trust(), "127.0.0.1"), (Trust(authority / "authority.pem"), "localhost")):
            stranger = open_receiver(f"syslog+tls://{host}:{rsyslog.port}", "siem", trust)
            with pytest.raises(Unavailable, match="certificate verify failed"):
                await stranger.send([entry()])
        assert rsyslog.lines() == []
        trusted = open_receiver(f"syslog+tls://127.0.0.1:{rsyslog.port}", "siem", Trust(authority / "authority.pem"))
        assert await sent(exporter, trusted) == 4
    assert leaves(rsyslog.events()) == [0, 1, 2, 3]


async def test_an_https_server_that_is_not_trusted_gets_nothing(authority: Path) -> None:
    async with HttpsServer(authority.parent / "server", "") as server:
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await open_receiver(server.uri, "siem", Trust(authorization="Bearer x")).send([entry()])
        assert server.requests == 0
        await open_receiver(server.uri, "siem", Trust(server.authority, authorization="Bearer x")).send([entry()])
        assert server.requests == 1


# A real collector -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(rotel() is None, reason="the wheel rotel is not installed")
async def test_a_collector_takes_everything_and_hands_it_on_as_it_was(exporter: Connection, ship: Any) -> None:
    await ship(700, traceparent=f"00-{'a1' * 16}-{'b2' * 8}-01")
    program = rotel()
    assert program is not None
    async with HttpServer() as behind:
        with rotel_running(program, behind.port) as port:
            assert await sent(exporter, open_receiver(f"otlp+http://127.0.0.1:{port}", "siem", Trust())) == 701
            await asyncio.to_thread(until, lambda: len(behind.records()) >= 701)
    records = behind.records()
    assert sorted(leaves(plain(record.body) for record in records)) == list(range(701))
    assert {record.trace_id.hex() for record in records} == {"", "a1" * 16}
