"""A store for tests, and what they ask it."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peltast.audit.checkpoint import Signer
from peltast.audit.collector.checkpoints import sign_tree
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import COLLECTOR_ROLE

__all__ = ["SIGNER", "partitions", "sign_as_collector", "started"]

SIGNER = Signer("peltast.dev/audit/mesh.example", Ed25519PrivateKey.from_private_bytes(b"k" * 32))

DEADLINE_SECONDS = 30.0


@contextmanager
def started(*settings: str) -> Iterator[EmbeddedPostgres]:
    """A real server, with settings such as `port=7`, which is gone afterwards with all that was in it."""
    folder = Path(tempfile.mkdtemp(prefix="/tmp/pg"))
    try:
        server = EmbeddedPostgres(folder / "data", folder)
        asyncio.run(server.prepare())
        command = [*server.command(), *(argument for setting in settings for argument in ("-c", setting))]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                asyncio.run(_until_it_answers(server, process, folder / "log"))
                yield server
            finally:
                process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
                process.wait(DEADLINE_SECONDS)
    finally:
        shutil.rmtree(folder)


async def _until_it_answers(server: EmbeddedPostgres, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            connection = await asyncpg.connect(server.url(SUPERUSER))
        except (OSError, asyncpg.PostgresError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.02)
        else:
            await connection.close()
            return


async def sign_as_collector(server: EmbeddedPostgres) -> None:
    """Signs the tree as it stands."""
    async with asyncpg.create_pool(server.url(COLLECTOR_ROLE), min_size=0, max_size=1) as pool:
        assert await sign_tree(pool, SIGNER), "it has grown"


async def partitions(owner: asyncpg.Connection) -> list[str]:
    """The partitions of days."""
    found = await owner.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'records'::regclass ORDER BY 1"
    )
    return [each["name"] for each in found if each["name"] != "records_default"]
