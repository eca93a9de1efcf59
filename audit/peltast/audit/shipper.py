"""Ships the spools of this node to the collector, for ever: at least once, in order, dropped only when committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import structlog

from peltast.audit.protos.collector_pb2 import Acknowledgement, Batch
from peltast.audit.spool import SpoolReader, spool_bytes, spool_folders
from peltast.authz._engine import SpoolUsage

__all__ = ["COLLECTOR_SERVICE", "Shipper"]

COLLECTOR_SERVICE = "peltast.audit.v1.Collector"

POLL_SECONDS = 0.05
_REFUSALS = (grpc.StatusCode.DATA_LOSS, grpc.StatusCode.PERMISSION_DENIED)
"""What the collector says of a spool that it will not take, however often it is sent."""

_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)

log = structlog.get_logger()


class Shipper:
    """One node's shipper. Make it before any writer of the node starts: it counts what is there already.

    A spool that cannot be read, or that the collector refuses, is set aside until the next start: it stays on disk,
    still counts, and keeps no other waiting.
    """

    def __init__(self, root: Path, spool_limit: int, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self._root = root
        self._open_channel = open_channel
        self._usage = SpoolUsage(root, spool_limit)
        self._usage.reset(spool_bytes(root))
        self._readers: dict[Path, SpoolReader] = {}
        self._set_aside: set[Path] = set()
        self._failures = 0

    async def run(self) -> None:
        """Ships for ever; a lost connection is opened again."""
        while True:
            try:
                async with self._open_channel() as channel:
                    await self._ship(channel)
            except grpc.aio.AioRpcError as error:
                delay = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
                log.warning("collector lost", error=error.details(), again_in_seconds=delay)
                self._failures += 1
                await asyncio.sleep(delay)

    async def _ship(self, channel: grpc.aio.Channel) -> None:
        method = channel.stream_stream(
            f"/{COLLECTOR_SERVICE}/Ship",
            request_serializer=Batch.SerializeToString,
            response_deserializer=Acknowledgement.FromString,
        )
        stream = _Exchange(method)
        while True:
            folders = [folder for folder in spool_folders(self._root) if folder not in self._set_aside]
            moved = [await self._ship_or_set_aside(folder, stream) for folder in folders]
            if not any(moved):
                await asyncio.sleep(POLL_SECONDS)

    async def _ship_or_set_aside(self, folder: Path, stream: _Exchange) -> bool:
        try:
            return await self._ship_some(folder, stream)
        except ValueError as error:
            self._put_aside(folder, str(error))
            return False
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                self._put_aside(folder, error.details() or "")
            raise  # the stream is over, whatever it was

    def _put_aside(self, folder: Path, reason: str) -> None:
        log.error("spool set aside", spool=folder.name, reason=reason)
        self._set_aside.add(folder)

    async def _ship_some(self, folder: Path, stream: _Exchange) -> bool:
        """Ships a batch of one spool; tells whether there was one."""
        reader = self._readers.get(folder)
        if reader is None:
            reader = SpoolReader(folder)
            stands_at = await stream.send(Batch(spool=reader.spool_id))
            self._usage.acknowledge(reader.seek(stands_at))
            self._readers[folder] = reader
        frames = reader.read()
        if frames or (reader.gap is not None and reader.gap != reader.told):
            committed = await stream.send(_batch(reader, frames))
            self._failures = 0
            self._usage.acknowledge(reader.acknowledge(committed))
            return True
        torn = reader.remove_if_finished()
        if torn is not None:
            self._usage.acknowledge(torn)
            del self._readers[folder]
        return False


def _batch(reader: SpoolReader, frames: bytes) -> Batch:
    batch = Batch(spool=reader.spool_id, frames=frames)
    if (gap := reader.gap) is not None:
        log.error("records lost", spool=reader.spool_id.hex(), after=reader.sequence, reason=gap.reason)
        batch.reason, batch.from_sequence, batch.from_link = gap.reason, gap.position.sequence, gap.position.link
    return batch


class _Exchange:
    """One stream to the collector: a batch out, its acknowledgement back."""

    def __init__(self, method: Callable[[AsyncIterator[Batch]], Any]) -> None:
        self._outgoing: asyncio.Queue[Batch] = asyncio.Queue()
        self._call = method(self._drain())

    async def send(self, batch: Batch) -> int:
        """Sends `batch`; gives the sequence up to which its spool is committed."""
        self._outgoing.put_nowait(batch)
        answer = await self._call.read()
        if not isinstance(answer, Acknowledgement):  # the end of the stream
            raise _error(await self._call.code(), await self._call.details())
        return answer.sequence

    async def _drain(self) -> AsyncIterator[Batch]:
        while True:
            yield await self._outgoing.get()


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details, None)
