from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from support.starts import take_in

from peltast.audit.query import follow, requests
from peltast.audit.reports.access import access_report
from peltast.audit.reports.plaintext import plaintext_report
from peltast.audit.reports.report import to_csv

Spool = Any
Connection = asyncpg.Connection

DEADLINE_SECONDS = 20.0
STOREFRONT = "spiffe://mesh.example/ns/bookshop/sa/storefront"


@pytest.fixture
async def shipped(collector: Connection, spool: Spool, principal: str) -> Any:
    async def ship() -> None:
        await take_in(collector, spool.id, principal, spool.frames())

    return ship


async def test_a_decision_and_its_end_are_one_request(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    decision = spool.append(
        path="/a", method="GET", effect="allow", source_principal=STOREFRONT, destination_principal=principal
    )
    spool.append(
        "end", decision_sequence=decision, status=204, bytes_sent=10, bytes_received=3, duration_ns=77, flags=1
    )
    await shipped()
    [request] = await requests(auditor)
    expected = {
        "kind": "decision",
        "sequence": decision,
        "path": "/a",
        "method": "GET",
        "effect": "allow",
        "status": 204,
        "bytes_sent": 10,
        "bytes_received": 3,
        "duration_ns": 77,
        "flags": 1,
        "source_principal": STOREFRONT,
        "destination_principal": principal,
        "interrupted": False,
    }
    assert {name: request[name] for name in expected} == expected


async def test_a_decision_without_an_end_is_interrupted(auditor: Connection, spool: Spool, shipped: Any) -> None:
    first, second = spool.append(effect="allow"), spool.append(effect="allow")
    spool.append("end", decision_sequence=second, status=200)
    await shipped()
    found = {row["sequence"]: (row["interrupted"], row["status"]) for row in await requests(auditor)}
    assert found == {first: (True, None), second: (False, 200)}
    spool.append("end", decision_sequence=first, status=503)
    await shipped()
    assert [row["interrupted"] for row in await requests(auditor)] == [False, False]


async def test_ends_of_another_spool_do_not_join(
    auditor: Connection, collector: Connection, spool: Spool, other_spool: Spool, shipped: Any, principal: str
) -> None:
    decision = spool.append(effect="allow")
    other_spool.append("end", decision_sequence=decision, status=200)
    await shipped()
    await take_in(collector, other_spool.id, principal, other_spool.frames())
    assert [row["interrupted"] for row in await requests(auditor)] == [True]


async def test_what_ended_before_a_decision_is_denied_by_why_it_ended(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    spool.append("end", status=400, end_details="http1.codec_error")
    spool.append("refusal", reason="peer has 2 URI SANs", source_address="127.0.0.9:5")
    await shipped()
    found = [
        (row["kind"], row["effect"], row["reason"], row["status"], row["destination_principal"], row["interrupted"])
        for row in await requests(auditor)
    ]
    assert found == [
        ("end", "deny", "http1.codec_error", 400, principal, False),
        ("refusal", "deny", "peer has 2 URI SANs", None, principal, False),
    ]


async def test_acts_outbound_calls_and_beginnings_are_no_requests(
    auditor: Connection, spool: Spool, shipped: Any
) -> None:
    spool.append("outbound", status=200)
    spool.append("act", action="svid.issue")
    await shipped()
    assert await requests(auditor) == []


async def test_requests_come_in_order_of_time_and_of_one_destination_if_asked(
    auditor: Connection, spool: Spool, shipped: Any
) -> None:
    for time_ns, destination in ((3000, "spiffe://a/x"), (1000, "spiffe://a/y"), (2000, "spiffe://a/x")):
        spool.writer.append("decision", time_ns, {"destination_principal": destination})
    await shipped()
    assert [row["sequence"] for row in await requests(auditor)] == [3, 4, 2]
    assert [row["sequence"] for row in await requests(auditor, "spiffe://a/x")] == [4, 2]
    assert await requests(auditor, "spiffe://a/z' OR true --") == []


async def test_following_gives_what_is_committed_from_then_on(
    auditor: Connection, spool: Spool, other_spool: Spool, collector: Connection, shipped: Any, principal: str
) -> None:
    spool.append(path="/before")
    await shipped()
    rows = follow(auditor)
    waiting = asyncio.ensure_future(anext(rows))
    # The first look at the store is at what is there already; what comes after it is what counts.
    while not waiting.done():
        decision = spool.append(path="/after")
        spool.append("end", decision_sequence=decision, status=200)
        await shipped()
        await asyncio.wait([waiting], timeout=0.05)
    assert (await waiting)["path"] == "/after"
    other_spool.append("act", action="svid.issue")
    await take_in(collector, other_spool.id, principal, other_spool.frames())
    async with asyncio.timeout(DEADLINE_SECONDS):
        kinds = [(await anext(rows))["kind"]]
        while kinds[-1] == "decision":
            kinds.append((await anext(rows))["kind"])
    assert kinds[-1] == "act"
    assert "end" not in kinds, "the end of a decision is no event of its own"


# Reports --------------------------------------------------------------------------------------------------------------


async def test_the_access_report_counts_who_was_let_to_whom(
    auditor: Connection, spool: Spool, shipped: Any, principal: str
) -> None:
    allowed = {"source_principal": STOREFRONT, "destination_principal": principal, "effect": "allow"}
    for decided_by in ("engine", "cache", "cache"):
        spool.append(**allowed, policy="bookshop/browse", rule=0, reason="rule", decided_by=decided_by)
    spool.append(source_principal=STOREFRONT, destination_principal=principal, effect="deny", reason="no rule")
    spool.append("refusal", reason="no certificate")
    await shipped()
    report = await access_report(auditor)
    assert report.title == "Access by identity"
    assert report.rows == (
        (None, principal, "deny", None, None, "no certificate", 1, 0),
        (STOREFRONT, principal, "allow", "bookshop/browse", 0, "rule", 3, 2),
        (STOREFRONT, principal, "deny", None, None, "no rule", 1, 0),
    )
    assert to_csv(report) == to_csv(await access_report(auditor))


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
    last = "2026-09-21T14:13:20Z"
    assert (await plaintext_report(auditor)).rows == (
        ("10.0.0.8", principal, None, "deny", "plaintext", 1, last),
        ("10.0.0.7", principal, 8080, "allow", "allow_rule", 2, last),
        ("10.0.0.7", principal, 8080, "deny", "no_allow_rule", 1, last),
        ("[fd00::7]", principal, 8080, "allow", "allow_rule", 1, last),
    )
