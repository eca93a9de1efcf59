"""The counts of the control mapping, recomputed from the rows without SQL."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from peltast.audit.reports.controls import CONTROL_ROWS, CONTROLS
from peltast.audit.reports.make import make_report

from .conftest import SPAN, Log, Record

Rows = list[Record]


def requests(rows: Rows, wanted: Callable[[Record], bool] = lambda row: True) -> int:
    counted = 0
    for row in rows:
        before_a_decision = row["kind"] == "end" and "decision_sequence" not in row
        if (row["kind"] in ("decision", "refusal", "summary") or before_a_decision) and wanted(row):
            counted += row.get("count", 1)
    return counted


def acts(rows: Rows, *beginnings: str) -> Rows:
    return [row for row in rows if row["kind"] == "act" and row["action"].startswith(beginnings or "")]


def effect(row: Record) -> str:
    return row.get("effect", "allow" if row["kind"] == "summary" else "deny")


def denied(rows: Rows) -> int:
    return requests(rows, lambda row: effect(row) == "deny")


def changed(rows: Rows) -> int:
    return len([row for row in acts(rows) if row["action"] == "configuration.changed"])


def incomplete(rows: Rows) -> int:
    needed = ("destination_principal", "effect", "reason")
    return len([row for row in rows if row["kind"] == "decision" and any(row.get(name) is None for name in needed)])


def set_back(rows: Rows) -> int:
    return sum(after["time_ns"] < before["time_ns"] for before, after in pairwise(rows))


def days(rows: Rows) -> int:
    return len({row["time"].date() for row in rows})


def of_kind(*kinds: str) -> Callable[[Rows], int]:
    return lambda rows: len([row for row in rows if row["kind"] in kinds])


def stored(number: int) -> Callable[[Rows], int]:
    """What is not in the rows: the fixture puts so many of them into tables of their own."""
    return lambda rows: number


RECOUNTED: dict[tuple[str, str], Callable[[Rows], int]] = {
    ("PCI DSS 4.0", "10.2.1.1"): lambda rows: requests(
        rows, lambda row: effect(row) == "allow" and "source_principal" in row
    ),
    ("PCI DSS 4.0", "10.2.1.2"): lambda rows: len(acts(rows)),
    ("PCI DSS 4.0", "10.2.1.4"): denied,
    ("PCI DSS 4.0", "10.2.1.5"): lambda rows: len(acts(rows, "svid.", "token.", "keys.")),
    ("PCI DSS 4.0", "10.2.1.6"): of_kind("genesis", "close"),
    ("PCI DSS 4.0", "10.2.1.7"): changed,
    ("PCI DSS 4.0", "10.2.2"): incomplete,
    ("PCI DSS 4.0", "10.3.2"): stored(1),
    ("PCI DSS 4.0", "10.3.4"): stored(2),
    ("PCI DSS 4.0", "10.5.1"): days,
    ("PCI DSS 4.0", "10.6.1"): set_back,
    ("PCI DSS 4.0", "10.7.2"): stored(1),
    ("SOC 2", "CC6.1"): requests,
    ("SOC 2", "CC6.2"): lambda rows: len([row for row in acts(rows, "svid.") if row["effect"] == "allow"]),
    ("SOC 2", "CC6.3"): changed,
    ("SOC 2", "CC6.6"): of_kind("refusal"),
    ("SOC 2", "CC6.7"): lambda rows: requests(
        rows, lambda row: effect(row) == "allow" and row.get("connection_security_policy") == "none"
    ),
    ("SOC 2", "CC7.1"): lambda rows: len(acts(rows, "configuration.")),
    ("SOC 2", "CC7.2"): denied,
    ("SOC 2", "CC7.3"): lambda rows: requests(rows, lambda row: row.get("decided_by") == "failed-open"),
    ("SOC 2", "CC7.4"): lambda rows: len([row for row in acts(rows, "token.revoke") if row["effect"] == "allow"]),
    ("NIST SP 800-53", "AU-2"): requests,
    ("NIST SP 800-53", "AU-3"): incomplete,
    ("NIST SP 800-53", "AU-4"): lambda rows: requests(rows, lambda row: row.get("reason") == "spool_unavailable"),
    ("NIST SP 800-53", "AU-5"): lambda rows: sum(row["count"] for row in rows if row["kind"] == "dropped"),
    ("NIST SP 800-53", "AU-6"): denied,
    ("NIST SP 800-53", "AU-8"): set_back,
    ("NIST SP 800-53", "AU-9"): stored(2),
    ("NIST SP 800-53", "AU-10"): stored(1),
    ("NIST SP 800-53", "AU-11"): days,
    ("NIST SP 800-53", "AU-12"): len,
}


async def test_every_count_is_that_of_the_rows(recorded: Log, auditor: asyncpg.Connection) -> None:
    await recorded.put([{"second": 1800, "kind": "decision", "owner": "catalog", "effect": "allow"}])
    rows = [row for row in recorded.records if SPAN.since <= row["time"] < SPAN.until]
    found = (await make_report(CONTROLS, auditor, SPAN)).table("controls")
    counts = {(row[0], row[1]): row[4] for row in found.rows}
    assert counts == {control: count(rows) for control, count in RECOUNTED.items()}
    assert [control for control, count in counts.items() if not count] == [], "each is seen to count something"


async def test_a_query_is_what_it_says(recorded: Log, auditor: asyncpg.Connection) -> None:
    """Whoever runs the text that the report shows gets the count that it shows."""
    for row in (await make_report(CONTROLS, auditor, SPAN)).table("controls").rows:
        query: Any = row[3]
        assert await auditor.fetchval(query, SPAN.since, SPAN.until) == row[4]


@pytest.mark.parametrize("framework", ["PCI DSS 4.0", "SOC 2", "NIST SP 800-53"])
def test_a_control_stands_once(framework: str) -> None:
    controls = [row.control for row in CONTROL_ROWS if row.framework == framework]
    assert len(controls) == len(set(controls)) > 8
