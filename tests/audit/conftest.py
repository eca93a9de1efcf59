from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
import structlog
from support.starts import PRINCIPAL, start_contents, take_in
from support.store import partitions, started

from peltast.audit.spool import SpoolReader, read_segment
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE, migrate
from peltast.authz._engine import SpoolStart, SpoolUsage, SpoolWriter

HEADER_BYTES = 48
BOUND = 64 * 1024 * 1024
START_NS = 1_790_000_000 * 10**9

Value = str | bytes | int

TABLES = (
    *("records", "spools", "quarantine", "tiles", "checkpoints", "starts", "gaps", "legal_holds"),
    *("dropped_partitions", "dropped_records", "auditors", "exports"),
)


@dataclass
class Spool:
    """A spool with its writer, which lives until it is let go."""

    root: Path
    usage: SpoolUsage
    owner: str = PRINCIPAL
    writer: SpoolWriter | None = None
    clock: int = field(default=START_NS)

    def __post_init__(self) -> None:
        self.start = start_contents(self.owner)
        before = set(self.root.iterdir())
        self.writer = SpoolWriter(self.root, self.usage, SpoolStart(self.start), self.clock)
        [self.folder] = [each for each in self.root.iterdir() if each.is_dir() and each not in before]

    def append(self, kind: str = "decision", **fields: Value) -> int:
        assert self.writer is not None, "the writer is dead"
        self.clock += 1000
        return self.writer.append(kind, self.clock, fields)

    def die(self) -> None:
        """As a process that is killed: nothing says that the spool is closed."""
        written = {segment: segment.read_bytes() for segment in self.segments}
        self.writer = None
        for segment, content in written.items():
            segment.write_bytes(content)

    def close(self) -> None:
        assert self.writer is not None, "the writer is dead"
        self.writer.close()

    @property
    def id(self) -> bytes:
        return bytes.fromhex(self.folder.name)

    @property
    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.segment"))

    def frames(self) -> bytes:
        """Everything that was written."""
        return b"".join(map(read_segment, self.segments))

    def damage(self, frames: bytes) -> None:
        """Makes `frames` all that the first segment holds, as something that comes to the disk might."""
        header = self.segments[0].read_bytes()[8:HEADER_BYTES]
        self.segments[0].write_bytes(len(frames).to_bytes(8, "little") + header + frames)

    def reader(self) -> SpoolReader:
        return SpoolReader(self.folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def usage(root: Path) -> SpoolUsage:
    return SpoolUsage(root, BOUND)


@pytest.fixture
def spool(root: Path, usage: SpoolUsage) -> Spool:
    return Spool(root, usage)


@pytest.fixture
def other_spool(spool: Spool) -> Spool:
    """A second spool in the same folder."""
    return Spool(spool.root, spool.usage)


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """A command that ran in this process logged to a stream of its own, which is closed."""
    yield
    structlog.reset_defaults()


# PostgreSQL -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A real server for the whole run."""
    with started("fsync=off") as server:
        yield server


@pytest.fixture
async def owner(postgres: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection that may do anything, to a store that is up to date and empty."""
    connection = await asyncpg.connect(postgres.url(SUPERUSER))
    try:
        await migrate(connection)
        for table in TABLES:  # faster than TRUNCATE, which makes new files for every partition and index
            await connection.execute(f"DELETE FROM {table}")
        await connection.execute("UPDATE tree SET size = 0, frontier = '', tail = ''")
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def unpartitioned(owner: asyncpg.Connection) -> asyncpg.Connection:
    """A store in which only the default partition is left."""
    for partition in await partitions(owner):
        await owner.execute(f"DROP TABLE {partition}")
    return owner


@pytest.fixture
async def collector(postgres: EmbeddedPostgres, owner: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the collector's rights."""
    connection = await asyncpg.connect(postgres.url(COLLECTOR_ROLE))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def auditor(postgres: EmbeddedPostgres, owner: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection with an auditor's rights."""
    connection = await asyncpg.connect(postgres.url(AUDITOR_ROLE))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
def principal() -> str:
    return PRINCIPAL


@pytest.fixture
async def stored(collector: asyncpg.Connection, spool: Spool, principal: str) -> Spool:
    """A spool of four records, all of which are in the store."""
    spool.append(path="/a", effect="allow")
    spool.append(path="/b", effect="deny")
    spool.append(path="/c", effect="allow")
    await take_in(collector, spool.id, principal, spool.frames())
    return spool


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="/tmp/pa") as folder:
        yield Path(folder)
