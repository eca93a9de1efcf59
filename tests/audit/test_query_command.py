"""`peltast audit query` as people and scripts run it."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.running import PELTAST, eventually
from support.starts import take_in
from typer.testing import CliRunner

from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE
from peltast.cli.main import app

Spool = Any

STOREFRONT = "spiffe://mesh.example/ns/bookshop/sa/storefront"
HOSTILE = "/\x1b]0;owned\x07\x1b[2J\u202e\u2028|\n2026-01-01 allow é"


@pytest.fixture
def url(postgres: EmbeddedPostgres) -> str:
    return postgres.url(AUDITOR_ROLE)


@pytest.fixture
async def filled(collector: Any, spool: Spool, principal: str) -> Spool:
    """A store with four requests: two allowed, one denied, one hostile; and an act."""
    same = {"source_principal": STOREFRONT, "destination_principal": principal}
    for path in ("/a", "/b"):
        decision = spool.append(**same, path=path, method="GET", effect="allow", policy="bookshop/browse", rule=0)
        spool.append("end", decision_sequence=decision, status=200)
    spool.append(**same, path="/c", method="GET", effect="deny", status=403, reason="no_allow_rule")
    spool.append(path=HOSTILE, method="=cmd()", host=b"\xff\0a", effect="deny", detail="@SUM(1)", policy="+1")
    spool.append("act", action="token.revoke", actor=STOREFRONT, object="jti 7", effect="allow")
    await take_in(collector, spool.id, principal, spool.frames())
    return spool


async def ask(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*PELTAST, "audit", "query", "--database", url, *arguments]
    # By bytes: lines end as the command ends them.
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(command, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


async def test_without_options_it_shows_the_newest_requests(url: str, filled: Spool, principal: str) -> None:
    shown = await ask(url)
    assert shown.returncode == 0, shown.stderr
    head, *lines = shown.stdout.splitlines()
    assert head.split() == [
        *("TIME", "EFFECT", "SOURCE_PRINCIPAL", "DESTINATION_PRINCIPAL", "METHOD", "PATH"),
        *("STATUS", "POLICY", "RULE", "REASON"),
    ]
    assert len(lines) == 4
    assert lines[3].split() == [
        *("2026-09-21T14:13:20.000001000Z", "allow", STOREFRONT, principal, "GET", "/a", "200"),
        *("bookshop/browse", "0", "-"),
    ]
    assert [line.index("GET") for line in lines[1:]] == [head.index("METHOD")] * 3, "columns stand under their heads"


async def test_json_lines_are_an_object_a_row_and_json_is_a_list_of_them(url: str, filled: Spool) -> None:
    lines = await ask(url, "--output", "jsonl", "--decision", "allow", "--columns", "time,path,code,reason")
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert rows == [
        {"time": "2026-09-21T14:13:20.000003000Z", "path": "/b", "status": 200},
        {"time": "2026-09-21T14:13:20.000001000Z", "path": "/a", "status": 200},
    ]
    listed = await ask(url, "--output", "json", "--decision", "allow", "--columns", "time,path,code,reason")
    assert json.loads(listed.stdout) == rows
    assert json.loads((await ask(url, "--output", "json", "--path", "/none")).stdout) == []


async def test_counts(url: str, filled: Spool) -> None:
    counted = await ask(url, "--count-by", "principal,decision", "--output", "csv")
    assert list(csv.reader(io.StringIO(counted.stdout))) == [
        ["source_principal", "effect", "count"],
        [STOREFRONT, "allow", "2"],
        ["", "deny", "1"],
        [STOREFRONT, "deny", "1"],
    ]
    total = await ask(url, "--count-by", "", "--principal", STOREFRONT, "--output", "jsonl")
    assert json.loads(total.stdout) == {"count": 3}


async def test_acts(url: str, filled: Spool) -> None:
    acts = await ask(url, "--kind", "acts", "--output", "jsonl", "--columns", "actor,action,object,effect")
    assert json.loads(acts.stdout) == {
        "actor": STOREFRONT,
        "action": "token.revoke",
        "object": "jti 7",
        "effect": "allow",
    }


async def test_what_is_cut_off_is_told(url: str, filled: Spool) -> None:
    cut = await ask(url, "--limit", "3", "--output", "jsonl")
    assert len(cut.stdout.splitlines()) == 3
    assert cut.stderr == "There are more than these 3 rows; --limit 0 gives all.\n"
    assert (await ask(url, "--limit", "4", "--output", "jsonl")).stderr == ""


async def test_hostile_rows_are_faithful_in_files(url: str, filled: Spool) -> None:
    given = ("--method", "=cmd()", "--columns", "path,method,host,detail,policy")
    [row] = [json.loads(line) for line in (await ask(url, "--output", "jsonl", *given)).stdout.splitlines()]
    expected = {"path": HOSTILE, "method": "=cmd()", "host": r"\xff\x00a", "detail": "@SUM(1)", "policy": "+1"}
    assert row == expected
    assert (await ask(url, "--path", HOSTILE, "--output", "jsonl")).stdout.count("\n") == 1
    _, cells = csv.reader(io.StringIO((await ask(url, "--output", "csv", *given)).stdout, newline=""))
    assert cells == [HOSTILE, "'=cmd()", r"\xff\x00a", "'@SUM(1)", "'+1"], "no formula"


@pytest.mark.parametrize("output", ["table", "csv", "json", "jsonl"])
async def test_a_terminal_is_shown_nothing_that_it_obeys(url: str, filled: Spool, output: str) -> None:
    shown = await asyncio.to_thread(on_a_terminal, "--database", url, "--columns", "path,method", "--output", output)
    assert "owned" in shown
    assert not set(shown) & set("\x1b\x07\u202e\u2028")
    assert len(shown.splitlines()) == {"table": 5, "csv": 5, "json": 6, "jsonl": 4}[output], "a row is a line"


def on_a_terminal(*arguments: str) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*PELTAST, "audit", "query", *arguments], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:
            pass  # the other side is closed
        assert process.wait(30) == 0, shown
    os.close(ours)
    return shown.decode()


REFUSED = [
    (("--since", "yesterday"), "--since: 'yesterday' is given; allowed: From this time on"),
    (("--since", "2026-01-01T00:00:00"), "--since: '2026-01-01T00:00:00' is given"),
    (("--since", "2026-02-30T00:00:00Z"), "--since: '2026-02-30T00:00:00Z' is given"),
    (("--since", "1h", "--until", "2h"), "--until: '2h' is given; allowed: a time that is not before since (1h)"),
    (("--code", "4x"), "--code: '4x' is given"),
    (("--decision", "maybe"), "--decision: 'maybe' is given; allowed: allow, deny"),
    (("--kind", "acts", "--path", "/a"), "--path: '/a' is given; allowed: of acts, only principal"),
    (("--columns", "path,nonsense"), "--columns: 'path,nonsense' is given; allowed: of requests, each once: time"),
    (("--count-by", "path,path"), "--count-by: 'path,path' is given"),
    (
        ("--count-by", "path", "--columns", "path"),
        "--columns: 'path' is given; allowed: either columns or count_by: it is of rows",
    ),
    (("--follow", "--until", "1h"), "--until: '1h' is given; allowed: nothing, when following"),
    (("--follow", "--code", "200"), "--code: '200' is given; allowed: nothing, when following"),
    (("--follow", "--columns", "status"), "--columns: 'status' is given; allowed: when following"),
    (("--follow", "--output", "json"), "--output: 'json' is given; allowed: table, jsonl, csv"),
]


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_what_cannot_be_asked_is_refused_by_name(arguments: tuple[str, ...], says: str) -> None:
    refused = CliRunner().invoke(app, ["audit", "query", *arguments])
    assert refused.exit_code == 2
    assert f"error {says}" in refused.stderr


async def test_bytes_that_are_no_text_are_refused(url: str) -> None:
    command = [*PELTAST, "audit", "query", "--database", url, "--path", b"/\xff"]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert rb"other bytes are on record as \xNN" in ended.stderr


async def test_a_store_that_is_away_is_told(tmp_path: Path) -> None:
    for arguments in ((), ("--follow",)):
        away = await ask(f"postgresql://nobody@/postgres?host={tmp_path}", *arguments)
        assert away.returncode == 1
        assert "error" in away.stderr


# Following ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def following(url: str, *arguments: str) -> AsyncIterator[list[str]]:
    """The lines of `peltast audit query --follow`, while it runs; then it is ended as by Ctrl-C."""
    command = [*PELTAST, "audit", "query", "--database", url, "--follow", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    lines: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            lines.append(line.decode())

    reading = asyncio.create_task(read())
    try:
        yield lines
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await reading


async def test_following_shows_rows_as_they_are_stored(
    url: str, filled: Spool, collector: Any, owner: Any, principal: str
) -> None:
    async with following(url, "--since", "2026-09-21T14:13:20Z", "--output", "jsonl", "--columns", "path") as lines:
        await eventually(lambda: len(lines) == 4, "what was there")
        filled.append(path="/later", effect="allow")
        await take_in(collector, filled.id, principal, filled.frames())
        await eventually(lambda: len(lines) == 5, "what came later")
        await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'peltast_auditor'")
        filled.append(path="/at last", effect="allow")
        await take_in(collector, filled.id, principal, filled.frames())
        await eventually(lambda: len(lines) == 6, "what came after its connection was ended")
    assert [json.loads(line)["path"] for line in lines] == ["/a", "/b", "/c", HOSTILE, "/later", "/at last"]
