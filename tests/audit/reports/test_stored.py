"""Reports of what was shipped, from records to cells."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from support.starts import take_in

from peltast.audit.reports.access import ACCESS
from peltast.audit.reports.denials import DENIALS
from peltast.audit.reports.formats import Format, write
from peltast.audit.reports.make import make_report
from peltast.audit.reports.plaintext import PLAINTEXT
from peltast.audit.reports.report import Span

Spool = Any
Connection = asyncpg.Connection

START = 1_790_000_000
STOREFRONT = "spiffe://mesh.example/ns/bookshop/sa/storefront"
DAY = Span(datetime(2026, 9, 21, tzinfo=UTC), datetime(2026, 9, 22, tzinfo=UTC))


@pytest.fixture
async def shipped(collector: Connection, spool: Spool, principal: str) -> Any:
    async def ship() -> None:
        await take_in(collector, spool.id, principal, spool.frames())

    return ship


async def test_the_access_report_counts_who_was_let_to_whom(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    allowed = {"source_principal": STOREFRONT, "destination_principal": principal, "effect": "allow"}
    for decided_by in ("engine", "cache", "cache"):
        spool.append(**allowed, policy="bookshop/browse", rule=0, reason="rule", decided_by=decided_by)
    spool.append(source_principal=STOREFRONT, destination_principal=principal, effect="deny", reason="no rule")
    spool.append("refusal", reason="no certificate")
    await shipped()
    report = await make_report(ACCESS, auditor, DAY)
    assert report.title == "Access by identity"
    assert report.table("access").rows == (
        (None, principal, "deny", None, None, "no certificate", 1, 0),
        (STOREFRONT, principal, "allow", "bookshop/browse", 0, "rule", 3, 2),
        (STOREFRONT, principal, "deny", None, None, "no rule", 1, 0),
    )


async def test_the_plaintext_report_counts_who_still_speaks_it(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    plaintext = {"destination_principal": principal, "destination_port": 8080, "connection_security_policy": "none"}
    for port in (40001, 40002):
        spool.append(**plaintext, source_address=f"10.0.0.7:{port}", effect="allow", reason="allow_rule")
    spool.append(**plaintext, source_address="10.0.0.7:40001", effect="deny", reason="no_allow_rule")
    spool.append(**plaintext, source_address="[fd00::7]:40001", effect="allow", reason="allow_rule")
    spool.append("refusal", source_address="10.0.0.8:1", effect="deny", reason="plaintext")
    spool.append("refusal", source_address="10.0.0.9:1", effect="deny", reason="no_certificate")
    spool.append(source_principal=STOREFRONT, source_address="10.0.0.9:1", effect="allow", reason="allow_rule")
    await shipped()
    found = (await make_report(PLAINTEXT, auditor, DAY)).table("plaintext")
    assert {time.replace(microsecond=0) for time in found.column("last_seen")} == {datetime.fromtimestamp(START, UTC)}
    assert [row[:-1] for row in found.rows] == [
        (principal, None, "10.0.0.8", "deny", "plaintext", 1),
        (principal, 8080, "10.0.0.7", "allow", "allow_rule", 2),
        (principal, 8080, "10.0.0.7", "deny", "no_allow_rule", 1),
        (principal, 8080, "[fd00::7]", "allow", "allow_rule", 1),
    ]


async def test_what_strangers_wrote_is_reported_as_it_was_stored(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    hostile = {
        "/\0": r"/\x00",
        b"/\xff\xfe": r"/\xff\xfe",
        "/'; DROP TABLE records; --": "/'; DROP TABLE records; --",
        "/" + "x" * 65_536: "/" + "x" * 65_536,
        "=cmd|' /C calc'!A0": "=cmd|' /C calc'!A0",
        "/\u202egpj": "/\u202egpj",
    }
    for path in hostile:
        spool.append(path=path, destination_principal=principal, effect="deny", reason="no_allow_rule")
    await shipped()
    report = await make_report(DENIALS, auditor, DAY)
    assert set(report.table("requests").column("path")) == set(hostile.values())
    page, text = (write(report, form).decode() for form in (Format.HTML, Format.TABLE))
    assert ["\\u{202e}gpj" in shown for shown in (page, text)] == [True, True]
    assert "'=cmd|' /C calc'!A0" in write(report, Format.CSV, "requests").decode()
