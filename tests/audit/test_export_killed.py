"""`peltast audit export` as people run it: exporter and receiver are killed, and everything arrives in order."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.receivers import RSYSLOGD, HttpServer, Rsyslog, until
from support.starts import take_in

from peltast.audit.store.migrate import EXPORTER_ROLE

Connection = asyncpg.Connection

PELTAST = Path(sys.executable).with_name("peltast")
RECORDS = 5000
"""Ten batches."""

DEADLINE_SECONDS = 60.0


@pytest.fixture
async def log(collector: Connection, spool: Any, principal: str) -> Callable[..., Any]:
    """Adds records to the log."""

    async def add(number: int) -> None:
        for index in range(number):
            spool.append(method="GET", path=f"/{index}", effect="allow", status=200)
        await take_in(collector, spool.id, principal, spool.frames())

    await add(RECORDS - 1)
    return add


@pytest.fixture
def command(postgres: Any, state: Path) -> Callable[..., list[str]]:
    def command(*arguments: str) -> list[str]:
        store = ["--state", str(state), "--database", postgres.url(EXPORTER_ROLE)]
        return [str(PELTAST), "audit", "export", *arguments, *store]

    return command


@contextmanager
def running(command: list[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The exporter, until it is killed."""
    with output.open("ab") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            yield process
        finally:
            process.kill()


def standing(command: Callable[..., list[str]]) -> dict[str, Any]:
    """What the export's place is, by the command."""
    ended = subprocess.run(command("--list", "--output", "json"), capture_output=True, check=True, timeout=30)
    [found] = json.loads(ended.stdout)
    return found


def is_complete(found: list[int], size: int) -> bool:
    """Whether every leaf is there, and came first after all before it."""
    return list(dict.fromkeys(found)) == list(range(size))


@pytest.mark.skipif(RSYSLOGD is None, reason="rsyslogd is not installed")
async def test_rsyslog_has_everything_though_it_and_the_exporter_are_killed(
    tmp_path: Path, log: Any, command: Callable[..., list[str]]
) -> None:
    rsyslog = Rsyslog(tmp_path)
    export = command("siem", "--to", f"syslog+tcp://127.0.0.1:{rsyslog.port}")

    def torture() -> None:
        for part in (800, 1800):  # the exporter is killed in the middle
            with rsyslog.running(), running(export, tmp_path / "output") as exporter:
                until(lambda part=part: len(rsyslog.lines()) >= part, exporter)  # type: ignore[misc]
        with running(export, tmp_path / "output") as exporter:  # the receiver is
            for part in (2600, 3700, 4200):
                with rsyslog.running():
                    until(lambda part=part: len(rsyslog.lines()) >= part, exporter)  # type: ignore[misc]
            assert exporter.poll() is None
        with rsyslog.running(), running([*export, "--once"], tmp_path / "output") as exporter:
            assert exporter.wait(DEADLINE_SECONDS) == 0

    await asyncio.to_thread(torture)
    found = [event["metadata"]["sequence"] for event in rsyslog.events()]
    assert is_complete(found, RECORDS), (len(found), len(set(found)))
    assert standing(command) == {"name": "siem", "leaf": RECORDS, "lag": 0, "updated": standing(command)["updated"]}


async def test_a_collector_has_everything_though_it_and_the_exporter_are_killed(
    tmp_path: Path, log: Any, command: Callable[..., list[str]]
) -> None:
    bodies: list[bytes] = []
    port = 0
    for _ in range(4):  # one batch before it dies, while it answers one with an error
        async with HttpServer(port) as server:
            port = server.port
            server.answers.append((503, {}, b""))
            export = command("siem", "--to", f"otlp+http://127.0.0.1:{port}")
            with running(export, tmp_path / "output") as exporter:
                await asyncio.to_thread(until, lambda: bool(server.bodies), exporter)
            bodies += server.bodies
    async with HttpServer(port) as server:
        with running([*export, "--once"], tmp_path / "output") as exporter:
            assert await asyncio.to_thread(exporter.wait, DEADLINE_SECONDS) == 0
        server.bodies[:0] = bodies
        assert is_complete([attribute(record, "peltast.leaf") for record in server.records()], RECORDS)


def attribute(record: Any, name: str) -> int:
    return next(each.value.int_value for each in record.attributes if each.key == name)


async def test_an_export_goes_on_with_what_comes_and_ends_when_told_to(
    tmp_path: Path, log: Any, command: Callable[..., list[str]]
) -> None:
    folder = tmp_path / "siem"
    folder.mkdir()

    def found() -> list[int]:
        lines = [line for file in sorted(folder.iterdir()) for line in file.read_bytes().splitlines(keepends=True)]
        return [json.loads(line)["metadata"]["sequence"] for line in lines if line.endswith(b"\n")]

    with running(command("siem", "--to", f"file://{folder}"), tmp_path / "output") as exporter:
        await asyncio.to_thread(until, lambda: len(found()) == RECORDS, exporter)
        await log(7)
        await asyncio.to_thread(until, lambda: len(found()) == RECORDS + 7, exporter)
        again = subprocess.run(
            command("siem", "--to", f"file://{folder}", "--once"), capture_output=True, check=False, timeout=30
        )
        assert (again.returncode, b"running already" in again.stderr) == (1, True)
        exporter.terminate()
        assert exporter.wait(DEADLINE_SECONDS) == 0
    assert found() == list(range(RECORDS + 7))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["siem"], 2, "--to URL are expected"),
        (["Siem/..", "--to", "file:///tmp"], 2, "lower-case letters"),
        (["siem", "--to", "file:///tmp", "--since", "yesterday"], 2, "a time such as"),
        (["siem", "--to", "gopher://x"], 1, "the scheme 'gopher' is given"),
        (["siem", "--to", "https://x", "--authorization", "/none"], 1, "/none: No such file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(
    command: Callable[..., list[str]], arguments: list[str], code: int, said: str
) -> None:
    ended = subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=30)
    assert (ended.returncode, said in " ".join(ended.stderr.split())) == (code, True), ended.stderr
