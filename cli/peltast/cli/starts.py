"""What writers of audit spools are started with: their agent's side of `peltast.audit.start`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog

from peltast.audit.protos.collector_pb2 import AuditKeys as AuditKeysMessage
from peltast.audit.protos.collector_pb2 import KeysRequest
from peltast.audit.shipper import COLLECTOR_SERVICE
from peltast.audit.spool import spool_heads
from peltast.audit.start import AuditKeys, Head, new_start
from peltast.identity.files import make_private_folder, write_private
from peltast.identity.svid import Svid

__all__ = ["KeyCache", "Starter"]

_TIMEOUT_SECONDS = 5.0
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)

log = structlog.get_logger()


class KeyCache:
    """The collector's public keys, kept in `file`, so that a restart needs no collector."""

    def __init__(self, file: Path, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self._file = file
        self._open_channel = open_channel

    async def get(self) -> AuditKeys:
        """Those that are kept, or else the collector's: waits for it."""
        if self._file.exists():
            return _parse(self._file.read_bytes())
        return await self.refresh()

    async def refresh(self) -> AuditKeys:
        """The collector's, and keeps them; waits for it."""
        attempt = 0
        while True:
            try:
                answer = await self._ask()
            except grpc.aio.AioRpcError as error:
                delay = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                log.warning("no audit keys yet", error=error.details(), again_in_seconds=delay)
                attempt += 1
                await asyncio.sleep(delay)
            else:
                keys = _parse(answer)
                write_private(self._file, answer)
                return keys

    async def _ask(self) -> bytes:
        async with self._open_channel() as channel:
            method = channel.unary_unary(
                f"/{COLLECTOR_SERVICE}/Keys",
                request_serializer=KeysRequest.SerializeToString,
                response_deserializer=bytes,
            )
            return bytes(await method(KeysRequest(), timeout=_TIMEOUT_SECONDS))


def _parse(message: bytes) -> AuditKeys:
    keys = AuditKeysMessage.FromString(message)
    return AuditKeys(keys.sealing_key, keys.hash_key)


@dataclass(frozen=True)
class Starter:
    """Makes the starts of one writer after the other, each of which names the one before."""

    spool: Path
    previous: Path
    """File with the hash of the start before."""
    svid: Callable[[], Svid]

    def start(self, keys: AuditKeys) -> bytes:
        """What the next process with spools in the folder is given: secret, and good once."""
        make_private_folder(self.spool)
        previous = self.previous.read_bytes() if self.previous.exists() else b""
        heads = [Head(spool=spool, sequence=at.sequence, link=at.link) for spool, at in spool_heads(self.spool)]
        svid = self.svid()
        made = new_start(keys, svid.key, svid.chain, datetime.now(UTC), previous, heads)
        write_private(self.previous, made.hash)
        return made.contents

    def write(self, keys: AuditKeys) -> None:
        """Leaves it for a process that takes it from the folder."""
        contents = self.start(keys)
        write_private(self.spool / "start", contents)
