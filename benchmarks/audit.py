"""What the audit store does with records: storing, verifying, finding; each to a baseline in the same run.

Each claim is a median over rounds; the spread is the distance of the quartiles. Times are of the wall clock, with the
PostgreSQL that comes with the wheel on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import asyncpg
from support.starts import keyring, start, trust
from support.store import started

from peltast.audit.chain import verify_store
from peltast.audit.collector.collect import Collector
from peltast.audit.columns import COLUMNS, row
from peltast.audit.protos.collector_pb2 import Batch
from peltast.audit.spool import SpoolReader, read_segment
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE, migrate
from peltast.authz._engine import SpoolUsage, SpoolWriter, first_link, scan_frames, verify_frames

OWNER = "spiffe://cluster.local/ns/shop/sa/catalog"
DAYS = 10
ROWS_OF_A_PRINCIPAL = 10_000
FEW = 1_000_000

SETTINGS = ("wal_level=minimal", "max_wal_senders=0", "max_wal_size=4GB")
"""So that filling a store takes minutes. What is measured commits to the disk as ever."""

HEADING = f"{'claim':<62} {'ratio':>7} {'spread':>7} {'limit':>9}"


@dataclass(frozen=True)
class Result:
    """What came of a claim; what is claimed is at least `least`, or at most `most`."""

    claim: str
    ratios: Sequence[float]
    least: float | None = None
    most: float | None = None
    detail: str = ""

    @property
    def ratio(self) -> float:
        """The median."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> float:
        """Distance between the quartiles."""
        lower, _, upper = statistics.quantiles(self.ratios, n=4)
        return upper - lower

    @property
    def holds(self) -> bool:
        """Whether the ratio is within its limit."""
        return (self.least is None or self.ratio >= self.least) and (self.most is None or self.ratio <= self.most)

    @property
    def limit(self) -> str:
        """The limit, for people."""
        return f">= {self.least:.2f}x" if self.least is not None else f"<= {self.most:.2f}x"


# The server -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(postgres: EmbeddedPostgres, role: str, database: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection of `role`."""
    connection = await asyncpg.connect(postgres.url(role).replace("/postgres?", f"/{database}?"))
    try:
        yield connection
    finally:
        await connection.close()


async def make_database(postgres: EmbeddedPostgres, name: str) -> None:
    """An empty store."""
    async with connected(postgres, SUPERUSER, "postgres") as owner:
        await owner.execute(f"CREATE DATABASE {name}")
    async with connected(postgres, SUPERUSER, name) as owner:
        await migrate(owner)


# Storing and verifying ------------------------------------------------------------------------------------------------


def write_spool(root: Path, requests: int) -> Path:
    """A spool of as many requests, each a decision and an end, as a sidecar writes them."""
    writer = SpoolWriter(root, SpoolUsage(root, 1 << 32), start(OWNER), time.time_ns())
    for number in range(requests):
        decision = writer.append("decision", time.time_ns(), decision_fields(number))
        end = {"decision_sequence": decision, "status": 200, "bytes_sent": 512, "duration_ns": 1_000_000 + number}
        writer.append("end", time.time_ns(), end)
    [folder] = [each for each in root.iterdir() if each.is_dir()]
    return folder


def decision_fields(number: int) -> dict[str, str | bytes | int]:
    """The fields of an allowed request with a token."""
    return {
        "source_principal": f"spiffe://cluster.local/ns/shop/sa/storefront-{number % 100}",
        "source_address": f"10.0.{number % 250}.7:51234",
        "source_serial": "5f2b9c0d1e8a7b6c",
        "destination_principal": OWNER,
        "destination_port": 8080,
        "token_issuer": "https://id.example",
        "token_subject": f"user-{number % 1000}",
        "method": "GET",
        "host": "catalog.shop",
        "path": f"/books/{number}",
        "request_id": f"2c8ee8e0-7a4e-4a3c-9d2e-{number:012d}",
        "traceparent": f"00-{number:032x}-00f067aa0ba902b7-01",
        "effect": "allow",
        "status": 200,
        "policy": "shop/readers",
        "rule": 0,
        "reason": "allow_rule",
        "decided_by": "cache",
        "program": bytes(32),
        "keys": bytes(32),
        "revocations": bytes(32),
    }


def batches(folder: Path) -> Iterator[bytes]:
    """What a shipper sends of the spool, a batch at a time."""
    reader = SpoolReader(folder)
    while found := scan_frames(frames := reader.read()):
        yield frames
        reader.acknowledge(found[1])


async def measure_storing(postgres: EmbeddedPostgres, requests: int, rounds: int) -> list[Result]:
    """Spool files to committed rows, to bare COPY of the same rows; and verifying them."""
    await make_database(postgres, "storing")
    async with connected(postgres, SUPERUSER, "storing") as owner:
        await owner.execute("SELECT ensure_partitions()")
    stored, verified = [], []
    async with (
        connected(postgres, SUPERUSER, "storing") as owner,
        connected(postgres, COLLECTOR_ROLE, "storing") as collector,
    ):
        for number in range(rounds):
            with tempfile.TemporaryDirectory(prefix="pb") as name:
                folder = write_spool(Path(name) / "spool", requests)
                rows = all_rows(folder)
                # By turns first: the machine's speed changes.
                copy_first = number % 2 == 0
                copying = await copy_rows(owner, rows) if copy_first else 0.0
                storing = await store(owner, collector, folder)
                verifying = await verify(owner)
                copying = copying or await copy_rows(owner, rows)
            stored.append(copying / storing)
            verified.append(storing / verifying)
    return [
        Result("spool files to committed rows, to bare COPY of them", stored, least=0.25),
        Result("verifying all of them, to storing them", verified, least=3.0),
    ]


def all_rows(folder: Path) -> list[tuple[Any, ...]]:
    """The rows that the spool's records are."""
    link, sequence, rows = first_link(), 0, []
    for segment in sorted(folder.glob("*.segment")):
        records, sequence, link = verify_frames(sequence, link, read_segment(segment))
        rows += [row(bytes.fromhex(folder.name), record.sequence - 1, OWNER, record) for record in records]
    return rows


async def copy_rows(owner: asyncpg.Connection[Any], rows: Sequence[tuple[Any, ...]]) -> float:
    """Seconds that a COPY of them takes."""
    await empty(owner)
    started = time.perf_counter()
    await owner.copy_records_to_table("records", records=rows, columns=list(COLUMNS))
    return time.perf_counter() - started


async def store(owner: asyncpg.Connection[Any], collector: asyncpg.Connection[Any], folder: Path) -> float:
    """Seconds until all of the spool is committed."""
    await empty(owner)
    core = Collector(keyring(), lambda *_: None)
    started = time.perf_counter()
    for frames in batches(folder):
        await core.take_in(collector, OWNER, Batch(spool=bytes.fromhex(folder.name), frames=frames))
    return time.perf_counter() - started


async def verify(owner: asyncpg.Connection[Any]) -> float:
    """Seconds that it takes to verify what is stored."""
    started = time.perf_counter()
    verification = await verify_store(owner, trust=trust())
    took = time.perf_counter() - started
    assert verification.sound, verification.findings[:1]
    return took


async def empty(owner: asyncpg.Connection[Any]) -> None:
    """Takes everything out of the store, and lets the disk come to rest."""
    await owner.execute(
        "TRUNCATE records, spools, starts, tiles; UPDATE tree SET size = 0, frontier = '', tail = ''; CHECKPOINT"
    )


# Finding --------------------------------------------------------------------------------------------------------------

FILL = """
INSERT INTO records (
    spool, sequence, leaf, owner, schema, kind, time, time_ns, body, link, source_principal, destination_principal,
    method, host, path, effect, status, policy, rule, reason, decided_by, decision_sequence, duration_ns)
SELECT
    substring(sha256(int8send(number / 2 % 64)) FOR 16), number, number, $1, 1,
    CASE WHEN number % 2 = 0 THEN 'decision' ELSE 'end' END,
    $2::timestamptz + (number - $3) * ($4::interval / $5),
    0, decode(repeat('5a', 200), 'hex'), sha256(int8send(number)),
    CASE WHEN number % 2 = 0 THEN 'spiffe://cluster.local/ns/shop/sa/app-' || (number / 2 % $6) END,
    CASE WHEN number % 2 = 0 THEN $1 END, CASE WHEN number % 2 = 0 THEN 'GET' END,
    CASE WHEN number % 2 = 0 THEN 'catalog.shop' END, CASE WHEN number % 2 = 0 THEN '/books/' || number END,
    CASE WHEN number % 2 = 0 THEN 'allow' END, 200, CASE WHEN number % 2 = 0 THEN 'shop/readers' END, 0,
    CASE WHEN number % 2 = 0 THEN 'allow_rule' END, CASE WHEN number % 2 = 0 THEN 'cache' END,
    CASE WHEN number % 2 = 1 THEN number - 1 END, 1000000
FROM generate_series($3::bigint, $3::bigint + $5::bigint - 1) AS number
"""
"""A day's requests, in order of time: each a decision and, directly behind it, its end."""

LAST_HOUR = "SELECT * FROM requests WHERE source_principal = $1 AND time >= $2 AND time < $3 ORDER BY time"


async def fill(postgres: EmbeddedPostgres, database: str, rows: int, end: datetime) -> None:
    """A store of `rows` records in the ten days before `end`, of as many more principals as it has more rows."""
    await make_database(postgres, database)
    of_a_day = rows // DAYS
    async with connected(postgres, SUPERUSER, database) as owner:
        for day in range(DAYS):
            start = end - timedelta(DAYS - day)
            async with owner.transaction():  # a table that is new in it needs no write-ahead log
                await owner.execute("SELECT make_partition($1)", start.date())
                await owner.execute(
                    FILL, OWNER, start, day * of_a_day, timedelta(1), of_a_day, principals(rows), timeout=3600
                )
        await owner.execute("SELECT ensure_partitions()")
        await owner.execute("VACUUM ANALYZE records", timeout=3600)
        await owner.execute("CHECKPOINT", timeout=3600)


def principals(rows: int) -> int:
    """How many principals make as many records: each makes the same number."""
    return rows // ROWS_OF_A_PRINCIPAL


async def measure_finding(postgres: EmbeddedPostgres, rows: int, rounds: int) -> list[Result]:
    """A principal's last hour among `rows` records, to the same among a million. By turns."""
    end = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    await fill(postgres, "few", FEW, end)
    await fill(postgres, "many", rows, end)
    ratios, took = [], []
    async with connected(postgres, AUDITOR_ROLE, "few") as few, connected(postgres, AUDITOR_ROLE, "many") as many:
        for number in range(-10, rounds):
            base = await last_hour(few, number % principals(FEW), end)
            other = await last_hour(many, number * 7919 % principals(rows), end)
            if number >= 0:  # the first ones fill caches
                ratios.append(other / base)
                took.append(other)
        touched = await partitions_touched(many, end)
    expected = {f"records_{end - timedelta(1):%Y%m%d}", "records_default"}
    earlier = {name for name in touched if name not in expected and name < f"records_{end:%Y%m%d}"}
    detail = f"median {statistics.median(took) * 1e3:.1f} ms; partitions read: {', '.join(sorted(touched))}"
    return [
        Result(f"a principal's last hour among {rows:,}, to among {FEW:,}", ratios, most=1.5, detail=detail),
        Result("partitions of earlier days that it reads", [float(len(earlier))] * 2, most=0.0),
    ]


async def last_hour(auditor: asyncpg.Connection[Any], principal: int, end: datetime) -> float:
    """Seconds that the answer takes. That it is the right one is part of the claim."""
    name = f"spiffe://cluster.local/ns/shop/sa/app-{principal}"
    started = time.perf_counter()
    found = await auditor.fetch(LAST_HOUR, name, end - timedelta(hours=1), end)
    took = time.perf_counter() - started
    expected = ROWS_OF_A_PRINCIPAL / DAYS / 24 / 2
    assert abs(len(found) - expected) <= 1 + expected / 10, (len(found), expected)
    assert not any(row["interrupted"] for row in found)
    return took


async def partitions_touched(auditor: asyncpg.Connection[Any], end: datetime) -> set[str]:
    """The tables from which EXPLAIN says that something was read."""
    await auditor.execute("SET plan_cache_mode = force_custom_plan")
    query = LAST_HOUR.replace("$1", "'spiffe://cluster.local/ns/shop/sa/app-7'")
    query = query.replace("$2", f"'{end - timedelta(hours=1)}'").replace("$3", f"'{end}'")
    [plan] = json.loads(await auditor.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}"))
    return set(relations(plan["Plan"]))


def relations(node: dict[str, Any]) -> Iterator[str]:
    """The tables of a plan that were read at all."""
    if "Relation Name" in node and node["Actual Loops"]:
        yield node["Relation Name"]
    for child in node.get("Plans", []):
        yield from relations(child)


def show(result: Result) -> None:
    """Prints a row of the table."""
    over = "" if result.holds else "  OVER"
    print(f"{result.claim:<62} {result.ratio:>6.2f}x {result.spread:>7.3f} {result.limit:>9}{over}")
    if result.detail:
        print(f"  {result.detail}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object: claim -> ratio, limit, spread")
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio is over its limit")
    parser.add_argument("--rows", type=int, default=FEW, help="records among which is searched; claimed for 10000000")
    parser.add_argument("--requests", type=int, default=20_000, help="requests that are stored in a round")
    parser.add_argument("--rounds", type=int, default=6, help="rounds of storing; of finding, ten times as many")
    options = parser.parse_args()
    with started(*SETTINGS) as postgres:
        results = asyncio.run(measure_storing(postgres, options.requests, options.rounds))
        results += asyncio.run(measure_finding(postgres, options.rows, 10 * options.rounds))
    if options.json:
        print(
            json.dumps(
                {each.claim: {"ratio": each.ratio, "limit": each.limit, "spread": each.spread} for each in results}
            )
        )
    else:
        print(HEADING)
        for result in results:
            show(result)
    if options.check and not all(result.holds for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
