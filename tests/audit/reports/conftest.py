from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from peltast.audit.reports.report import Span
from peltast.authz.revision import Revision, compile_revision
from peltast.policies.snapshot import load
from peltast.policies.sources.folder import read_folder

GOLDEN = Path(__file__).parents[2] / "golden" / "reports"
SINCE = datetime(2026, 9, 21, 12, tzinfo=UTC)
SPAN = Span(SINCE, SINCE + timedelta(hours=1))
SPOOL = bytes(16)

Record = dict[str, Any]

_PRINCIPALS = {
    name: f"spiffe://cluster.local/ns/{namespace}/sa/{name}"
    for name, namespace in (
        ("storefront", "bookshop"),
        ("catalog", "bookshop"),
        ("ledger", "bookshop"),
        ("legacy", "office"),
        ("control", "peltast-system"),
    )
}


@dataclass
class Log:
    """Records put into the store as they are: the same at every run."""

    owner: asyncpg.Connection
    records: list[Record]

    async def put(self, records: Iterable[Record]) -> None:
        for given in records:
            record = _record(given, len(self.records))
            self.records.append(record)
            names = ", ".join(record)
            values = ", ".join(f"${number}" for number in range(1, len(record) + 1))
            await self.owner.execute(f"INSERT INTO records ({names}) VALUES ({values})", *record.values())


def _record(given: Record, leaf: int) -> Record:
    fields = dict(given)
    time = SINCE + timedelta(seconds=fields.pop("second"))
    if "source" in fields:
        fields["source_principal"] = _PRINCIPALS[fields.pop("source")]
    if "to" in fields:
        fields["destination_principal"] = _PRINCIPALS[fields["to"]]
        fields.setdefault("owner", fields.pop("to"))
        fields.pop("to", None)
    fields["owner"] = _PRINCIPALS[fields["owner"]]
    time_ns = int(time.timestamp()) * 10**9
    chained = {"spool": SPOOL, "sequence": leaf + 1, "leaf": leaf, "body": b"", "link": bytes(32)}
    return {**chained, "schema": 1, "time": time, "time_ns": time_ns, **fields}


@pytest.fixture
async def log(owner: asyncpg.Connection) -> Log:
    """An empty log."""
    return Log(owner, [])


@pytest.fixture
async def recorded(log: Log) -> Log:
    """The log of the goldens, with a checkpoint that some of its records came after."""
    await log.put(yaml.safe_load((GOLDEN / "records.yaml").read_text()))
    for second, size, filler in ((1, 2, 0xAA), (1800, 28, 0xBB), (3601, 31, 0xCC)):
        time = SINCE + timedelta(seconds=second)
        root = bytes([filler]) * 32
        await log.owner.execute("INSERT INTO checkpoints VALUES ($1, $2, $3, 'note')", size, root, time)
    moment = SINCE + timedelta(seconds=5)
    await log.owner.execute(
        "INSERT INTO gaps (spool, since, until, reason, noticed) VALUES ($1, 5, 9, 'damaged', $2)",
        *(SPOOL, moment),
    )
    await log.owner.execute("INSERT INTO starts VALUES ($1, 'x', NULL, '', $2)", bytes(32), moment)
    await log.owner.execute("INSERT INTO quarantine VALUES ($1, 'x', 'fork', '', '', $2)", SPOOL, moment)
    return log


@pytest.fixture(scope="session")
def configuration() -> Revision:
    return compile_revision(load(read_folder(GOLDEN / "configuration"), "cluster.local", 1))
