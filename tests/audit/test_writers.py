"""Whose the spools of a store are: found out by what agents signed, and by the codes of all records."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from support.starts import KEYS, PRINCIPAL, start_contents, svid, take_in, trust

from peltast.audit.chain import Finding, Verification, verify_store
from peltast.audit.spool import SpoolReader, spool_folders
from peltast.audit.start import Head, new_start
from peltast.audit.writers import Trust
from peltast.authz._engine import SpoolStart, SpoolUsage, SpoolWriter, first_link, verify_frames

Connection = asyncpg.Connection


async def verify(auditor: Connection, known: Trust | None = None) -> list[tuple[str, str | None, int | None]]:
    verification = await verify_store(auditor, trust=known or trust())
    return [(finding.what, finding.spool, finding.sequence) for finding in verification.findings]


async def test_what_was_taken_in_is_its_writers(auditor: Connection, stored: Any) -> None:
    assert await verify(auditor) == []


@pytest.mark.parametrize("change", ["set_byte(mac, 0, get_byte(mac, 0) # 1)", "NULL", "substr(mac, 1, 8)"])
async def test_a_record_with_another_code_is_found(
    owner: Connection, auditor: Connection, stored: Any, change: str
) -> None:
    await owner.execute(f"UPDATE records SET mac = {change} WHERE sequence = 3")
    told = "the record is not by its spool's writer: its code differs"
    assert await verify(auditor) == [(told, stored.id.hex(), 3)]
    assert await verify(auditor, Trust(trust().roots)) == []


async def test_codes_are_compared_behind_a_gap(
    collector: Connection, owner: Connection, auditor: Connection, spool: Any, principal: str
) -> None:
    for number in range(6):
        spool.append(path=f"/{number}")
    frames = spool.frames()
    ends = [0]
    while ends[-1] < len(frames):
        body = int.from_bytes(frames[ends[-1] : ends[-1] + 4], "little")
        ends.append(ends[-1] + 4 + body + 32 + 16)
    await take_in(collector, spool.id, principal, frames[: ends[2]])
    link = verify_frames(0, first_link(), frames[: ends[5]])[2]
    gap = {"from_sequence": 5, "from_link": link, "reason": "torn"}
    await take_in(collector, spool.id, principal, frames[ends[5] :], **gap)
    assert await verify(auditor) == []
    await owner.execute("UPDATE records SET mac = set_byte(mac, 0, get_byte(mac, 0) # 1) WHERE sequence = 7")
    assert [sequence for _, _, sequence in await verify(auditor)] == [7]


async def test_starts_are_checked_again(owner: Connection, auditor: Connection, stored: Any) -> None:
    other = start_contents(PRINCIPAL)[72:]
    kept = await owner.fetchval("SELECT statement FROM starts")
    name = stored.id.hex()
    await owner.execute("UPDATE starts SET statement = $1", other)
    assert ("the start was altered: it is not the one that the spool names", name, 1) in await verify(auditor)
    await owner.execute("UPDATE starts SET statement = $1", b"no statement")
    assert any("the start is malformed" in what for what, _, _ in await verify(auditor))
    await owner.execute("UPDATE starts SET statement = $1", kept)
    svid("spiffe://other.example/ns/shop/sa/client")
    strangers = Trust(trust().roots[-1:], KEYS.sealing)
    assert any("not of this trust domain" in what for what, _, _ in await verify(auditor, strangers))
    other_key = Trust(trust().roots, X25519PrivateKey.generate())
    assert await verify(auditor, other_key) == [("the start's root key is not sealed to this collector", name, 1)]
    await owner.execute("UPDATE spools SET start = NULL; DELETE FROM starts")
    told = "the spool's start is not on record: nobody can tell whose it is"
    assert (told, name, 1) in await verify(auditor)


@pytest.fixture
def heads(stored: Any) -> dict[str, Head]:
    """What an agent may state of the spool that is stored."""
    last = verify_frames(0, first_link(), stored.frames())[0][-1]
    return {
        "as it is": Head(spool=stored.id, sequence=last.sequence, link=last.link),
        "with another record": Head(spool=stored.id, sequence=last.sequence, link=b"x" * 32),
        "longer": Head(spool=stored.id, sequence=last.sequence + 3, link=b"y" * 32),
        "another spool": Head(spool=b"s" * 16, sequence=1, link=b"z" * 32),
        "with a place that there is not": Head(spool=stored.id, sequence=2**64 - 1, link=b"w" * 32),
    }


async def start_again(tmp_path: Path, collector: Connection, stated: list[Head], previous: bytes = b"") -> str:
    """Takes in a spool of a start whose agent stated this; gives the start's hash."""
    identity = svid(PRINCIPAL)
    made = new_start(KEYS.public, identity.key, identity.chain, datetime.now(UTC), previous, stated)
    root = tmp_path / "again"
    SpoolWriter(root, SpoolUsage(root, 1 << 24), SpoolStart(made.contents), 1).close()
    for folder in spool_folders(root):
        await take_in(collector, bytes.fromhex(folder.name), PRINCIPAL, SpoolReader(folder).read())
    return made.hash.hex()


@pytest.mark.parametrize(
    ("head", "finding", "awaited"),
    [
        ("as it is", False, False),
        ("with another record", True, False),
        ("longer", False, True),
        ("another spool", False, True),
        ("with a place that there is not", False, True),
    ],
)
async def test_what_agents_state_of_the_past_is_compared(
    tmp_path: Path,
    collector: Connection,
    auditor: Connection,
    heads: dict[str, Head],
    stored: Any,
    head: str,
    finding: bool,
    awaited: bool,
) -> None:
    start = await start_again(tmp_path, collector, [heads[head]])
    verification = await verify_store(auditor, trust=trust())
    told = Finding(f"its agent had another record here when it started {start}", stored.id.hex(), heads[head].sequence)
    assert verification.findings == ((told,) if finding else ())
    assert [each.start for each in verification.awaited] == ([start] if awaited else [])


async def test_a_start_that_never_came_is_told(tmp_path: Path, collector: Connection, auditor: Connection) -> None:
    start = await start_again(tmp_path, collector, [], b"p" * 32)
    verification: Verification = await verify_store(auditor, trust=trust())
    assert verification.sound
    assert [(each.what, each.owner, each.start) for each in verification.awaited] == [
        (f"the start {(b'p' * 32).hex()}", PRINCIPAL, start)
    ]
