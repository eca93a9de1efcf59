"""Pages of hostile records, opened in a real browser: no script runs, and nothing is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg
import pytest

from peltast.audit.reports.formats import Format, write
from peltast.audit.reports.kinds import KINDS
from peltast.audit.reports.make import Kind, make_report
from peltast.audit.reports.report import Bar, Chart, Column, Report, Table
from peltast.authz.revision import Revision

from .conftest import SPAN, Log

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SECONDS = 120
RAN = "a script ran here"

ATTACKS = (
    "<script>document.title='@RAN@'</script>",
    "</title></style></bdi></td><script>document.title='@RAN@'</script>",
    "<img src=@SERVER@/img onerror=\"document.title='@RAN@'\">",
    '"><svg onload="document.title=\'@RAN@\'">',
    "' onmouseover='x' autofocus onfocus='document.title=\"@RAN@\"",
    "<iframe src=@SERVER@/frame></iframe><link rel=stylesheet href=@SERVER@/style>",
    "<meta http-equiv=refresh content='0;url=@SERVER@/refresh'>",
    "<base href=@SERVER@/><form action=@SERVER@/form>",
    "{{ 7 * 7 }}{% for x in y %}${7*7}",
    "&lt;script&gt; &#60;script&#62; \\u003cscript\\u003e",
    "]]><!--<script>--><!DOCTYPE x [<!ENTITY a SYSTEM '@SERVER@/entity'>]>&a;",
    '=HYPERLINK("@SERVER@/formula")',
    "javascript:document.title='@RAN@'",
    "\u202etxt.exe\u2066 \x1b[2J\x07 \ufeff \ufffe",
    "'; DROP TABLE records; --",
    "/" + "<b>x</b>" * 8192,
)


@pytest.fixture
def browser() -> str:
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("no Chromium is installed (Debian: chromium)")
    assert CHROMIUM is not None, "CI installs Chromium"
    return CHROMIUM


class Server(ThreadingHTTPServer):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attacks(server: Server) -> list[str]:
    return [each.replace("@SERVER@", server.url).replace("@RAN@", RAN) for each in ATTACKS]


def opened(browser: str, page: bytes, folder: Path) -> str:
    """What becomes of `page` once it is loaded, as the browser writes it."""
    file = folder / "page.html"
    file.write_bytes(page)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=2000"]
    command = [browser, *flags, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=SECONDS, check=True).stdout.decode()


def page_of(attacks: list[str]) -> bytes:
    columns = (Column("cell"),)
    rows = tuple((attack,) for attack in attacks)
    charts = (Chart("Bars", ("denied",), tuple(Bar(attack, (1,)) for attack in attacks)),)
    return write(
        Report("some", "Some", SPAN, (Table("cells", "Cells", columns, rows),), charts, tuple(attacks)), Format.HTML
    )


def test_no_script_runs_and_nothing_is_asked_for(browser: str, server: Server, tmp_path: Path) -> None:
    found = opened(browser, page_of(attacks(server)), tmp_path)
    assert "<title>Some</title>" in found
    assert server.asked == []
    assert "<script" not in found
    assert found.count("<td") == len(ATTACKS)


def test_the_browser_would_run_and_ask(browser: str, server: Server, tmp_path: Path) -> None:
    """That the test above can fail: the same attacks, not escaped and without a policy."""
    found = opened(browser, b"<title>Some</title>" + "".join(attacks(server)[:3]).encode(), tmp_path)
    assert f"<title>{RAN}</title>" in found
    assert server.asked == ["/img"]


def test_the_policy_holds_where_escaping_would_not(browser: str, server: Server, tmp_path: Path) -> None:
    """A second wall: what came to stand in a page's body as it is neither runs nor loads."""
    page = page_of([]).replace(b"</body>", "".join(attacks(server)[:6]).encode() + b"</body>")
    found = opened(browser, page, tmp_path)
    assert "<title>Some</title>" in found
    assert server.asked == []


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
async def test_reports_of_hostile_records(
    kind: Kind,
    browser: str,
    server: Server,
    log: Log,
    auditor: asyncpg.Connection,
    configuration: Revision,
    tmp_path: Path,
) -> None:
    for second, attack in enumerate(attacks(server)):
        texts = dict.fromkeys(("source_principal", "method", "host", "path", "reason", "policy", "detail"), attack)
        places = {"second": second, "owner": "catalog", "to": "catalog", "effect": "deny", "source_address": attack}
        await log.put(
            {**places, **texts, "kind": record, "action": action, "actor": attack, "object": attack, "rule": 0}
            for record, action in (
                ("decision", None),
                ("refusal", None),
                ("act", "svid.issue"),
                ("act", "configuration.changed"),
            )
        )
    report = await make_report(kind, auditor, SPAN, configuration if kind.compares else None)
    for form in (Format.TABLE, Format.CSV, Format.JSON, Format.PARQUET):
        assert write(report, form)
    found = opened(browser, write(report, Format.HTML), tmp_path)
    assert f"<title>{report.title}</title>" in found
    assert server.asked == []
    assert "<script" not in found
