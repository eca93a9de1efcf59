"""Claim: verifying the whole log is at least 3 times as fast as taking it in.

Baseline, in the same run: spool files to committed rows (chain, tree and tiles included), by one collector connection
to an embedded PostgreSQL. Both are of the same records: for each request a decision and an end, as a sidecar writes.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg

from peltast.audit.chain import verify_store
from peltast.audit.collector.collect import take_in
from peltast.audit.spool import read_segment
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import COLLECTOR_ROLE, migrate
from peltast.authz._engine import SpoolUsage, SpoolWriter, scan_frames

OWNER = "spiffe://cluster.local/ns/bookshop/sa/catalog"
BATCH = 2 * 1024 * 1024
NOW_NS = 1_790_000_000 * 10**9


def write(root: Path, requests: int) -> tuple[bytes, list[bytes]]:
    """A spool of `requests` decisions with their ends: its id, and its segments' records."""
    writer = SpoolWriter(root, SpoolUsage(root, 1 << 40), NOW_NS)
    for number in range(requests):
        decision = {
            "source_principal": "spiffe://cluster.local/ns/bookshop/sa/storefront",
            "source_address": "127.0.0.2:40000",
            "source_serial": "5b2c9e0e1f9a4f0f8d2b7c6a5e4d3c2b1a09f8e7",
            "destination_principal": OWNER,
            "destination_port": 8080,
            "method": "GET",
            "host": "catalog.bookshop.svc.cluster.local",
            "path": f"/books/{number}",
            "request_id": f"{number:032x}",
            "effect": "allow",
            "status": 200,
            "policy": "bookshop/browse",
            "rule": 0,
            "reason": "allow_rule",
            "decided_by": "cache",
            "program": b"p" * 32,
            "keys": b"k" * 32,
        }
        sequence = writer.append("decision", NOW_NS + number, decision)
        ended = {"decision_sequence": sequence, "status": 200, "bytes_sent": 512, "duration_ns": 900_000, "flags": 0}
        writer.append("end", NOW_NS + number, ended)
    [folder] = [each for each in root.iterdir() if each.is_dir()]
    return bytes.fromhex(folder.name), [read_segment(segment) for segment in sorted(folder.glob("*.segment"))]


def batches(segment: bytes) -> list[bytes]:
    """`segment` in whole records, as an agent ships it."""
    found = []
    while segment:
        scanned = scan_frames(segment[:BATCH])
        assert scanned is not None
        found.append(segment[: scanned[2]])
        segment = segment[scanned[2] :]
    return found


async def measure(folder: Path, requests: int, server: EmbeddedPostgres) -> None:
    """Takes the records in, verifies them, and prints both."""
    while True:
        try:
            owner = await asyncpg.connect(server.url(SUPERUSER))
            break
        except (OSError, asyncpg.PostgresError):
            await asyncio.sleep(0.05)
    await migrate(owner)
    spool, segments = write(folder / "spool", requests)
    collector = await asyncpg.connect(server.url(COLLECTOR_ROLE))
    started = time.perf_counter()
    for segment in segments:
        for batch in batches(segment):
            await take_in(collector, spool, OWNER, batch)
    taken = time.perf_counter() - started
    await owner.execute("VACUUM ANALYZE records")
    started = time.perf_counter()
    verification = await verify_store(owner)
    verified = time.perf_counter() - started
    assert verification.sound, verification.findings[:3]
    records = verification.records
    print(f"taken in: {records} records in {taken:.2f} s, {records / taken:,.0f} a second")
    print(f"verified: {records} records in {verified:.2f} s, {records / verified:,.0f} a second")
    print(f"verifying is {taken / verified:.2f} times as fast (at least 3 are claimed)")
    await owner.close()
    await collector.close()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="/tmp/pv") as name:
        folder = Path(name)
        server = EmbeddedPostgres(folder / "data", folder)
        asyncio.run(server.prepare())
        with subprocess.Popen(server.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                asyncio.run(measure(folder, arguments.requests, server))
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
