"""The shipper against a real collector and a real store, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from support.starts import KEYS, keyring, take_in

from peltast.audit.chain import verify_store
from peltast.audit.collector.collect import Collector as CollectorCore
from peltast.audit.collector.service import collector_methods
from peltast.audit.protos.collector_pb2 import Acknowledgement, AuditKeys, Batch, KeysRequest
from peltast.audit.shipper import COLLECTOR_SERVICE, Shipper
from peltast.audit.spool import spool_bytes
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import COLLECTOR_ROLE
from peltast.authz._engine import SpoolUsage
from peltast.identity.rpc import generic_handler, server_options

Spool = Any
Connection = asyncpg.Connection

DEADLINE_SECONDS = 10.0
BOUND = 64 * 1024 * 1024


class Collector:
    """A collector that can be stopped and started at one address."""

    def __init__(self, pool: asyncpg.Pool, caller: str | Exception, address: str) -> None:
        self._pool = pool
        self.caller = caller
        self.address = address
        self._server: grpc.aio.Server | None = None

    def _caller(self, _: object) -> str:
        if isinstance(self.caller, Exception):
            raise self.caller
        return self.caller

    async def start(self) -> None:
        self._server = grpc.aio.server(options=server_options)
        unary, streams = collector_methods(self._pool, CollectorCore(keyring(), lambda *_: None), self._caller)
        self._server.add_generic_rpc_handlers((generic_handler(COLLECTOR_SERVICE, unary, streams),))
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(grace=None)
            self._server = None

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address, options=server_options)


@pytest.fixture
async def running(
    postgres: EmbeddedPostgres, owner: Connection, principal: str, sockets: Path
) -> AsyncIterator[Collector]:
    async with asyncpg.create_pool(postgres.url(COLLECTOR_ROLE), min_size=0, max_size=4) as pool:
        collector = Collector(pool, principal, f"unix:{sockets}/collector.sock")
        await collector.start()
        try:
            yield collector
        finally:
            await collector.stop()


@contextlib.asynccontextmanager
async def shipping(root: Path, collector: Collector) -> AsyncIterator[None]:
    task = asyncio.create_task(Shipper(root, BOUND, collector.channel).run())
    try:
        yield
        assert not task.done(), "a shipper runs for ever"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what is waited for happens in the store
            await asyncio.sleep(0.01)


def stored_up_to(owner: Connection, spool_id: bytes, sequence: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return bool(await owner.fetchval("SELECT max(sequence) FROM records WHERE spool = $1", spool_id) == sequence)

    return check


async def test_what_is_written_is_stored_and_what_comes_later_too(
    running: Collector, owner: Connection, spool: Spool, usage: SpoolUsage
) -> None:
    spool.append(path="/a")
    async with shipping(spool.root, running):
        await until(stored_up_to(owner, spool.id, 2))
        spool.append(path="/b")
        await until(stored_up_to(owner, spool.id, 3))

        async def nothing_held() -> bool:
            return usage.held == 0

        await until(nothing_held)
    assert (await verify_store(owner)).sound


async def test_all_spools_are_shipped_and_those_of_dead_writers_removed(
    running: Collector, owner: Connection, spool: Spool, other_spool: Spool
) -> None:
    for _ in range(9):
        spool.append(detail="x" * 600_000)
    spool.die()

    async def removed() -> bool:
        return not spool.folder.exists()

    async with shipping(spool.root, running):
        await until(removed)
        await until(stored_up_to(owner, other_spool.id, 1))
    assert await stored_up_to(owner, spool.id, 10)()
    assert other_spool.folder.exists()
    assert (await verify_store(owner)).sound


async def test_a_restart_of_the_collector_loses_and_doubles_nothing(
    running: Collector, owner: Connection, spool: Spool
) -> None:
    async with shipping(spool.root, running):
        for number in range(1, 4):
            spool.append(path=f"/{number}")
            await until(stored_up_to(owner, spool.id, 2 * number))
            await running.stop()
            spool.append(path=f"/{number}/while it was away")
            await running.start()
        await until(stored_up_to(owner, spool.id, 7))
    assert (await verify_store(owner)).sound
    assert await owner.fetchval("SELECT count(*) FROM quarantine") == 0


async def test_a_new_shipper_goes_on_where_the_store_stands(
    running: Collector, owner: Connection, collector: Connection, spool: Spool, usage: SpoolUsage, principal: str
) -> None:
    """The one before it died after the commit and before it heard of it."""
    spool.append(path="/a")
    await take_in(collector, spool.id, principal, spool.frames())
    spool.append(path="/b")
    async with shipping(spool.root, running):
        assert usage.held == spool_bytes(spool.root), "what is there counts at once"
        await until(stored_up_to(owner, spool.id, 3))

        async def nothing_held() -> bool:
            return usage.held == 0

        await until(nothing_held)


async def forge(owner: Connection, spool: Spool) -> None:
    """Makes the store hold another history of `spool` than it has."""
    await owner.execute("UPDATE records SET link = sha256('forged') WHERE spool = $1", spool.id)
    await owner.execute("UPDATE spools SET link = sha256('forged') WHERE spool = $1", spool.id)


@pytest.mark.parametrize("which", [0, 1])
async def test_a_spool_that_is_refused_does_not_keep_others_waiting(
    running: Collector,
    owner: Connection,
    collector: Connection,
    spool: Spool,
    other_spool: Spool,
    principal: str,
    which: int,
) -> None:
    """Whether it comes before them or after them."""
    ordered = sorted([spool, other_spool], key=lambda each: each.folder.name)
    bad, good = ordered[which], ordered[1 - which]
    await take_in(collector, bad.id, principal, bad.frames())
    await forge(owner, bad)
    bad.append(path="/does not go on")
    good.append(path="/a")
    async with shipping(spool.root, running):
        await until(stored_up_to(owner, good.id, 2))

        async def kept_aside() -> bool:
            return bool(await owner.fetchval("SELECT count(*) FROM quarantine"))

        await until(kept_aside)
        good.append(path="/b")
        await until(stored_up_to(owner, good.id, 3))
        bad.append(path="/more")
        good.append(path="/c")
        await until(stored_up_to(owner, good.id, 4))
    assert await owner.fetchval("SELECT count(*) FROM quarantine") == 1, "it is not sent again and again"
    assert bad.segments, "nothing of it is lost"


async def test_a_spool_of_somebody_else_does_not_keep_others_waiting(
    running: Collector, owner: Connection, collector: Connection, spool: Spool, other_spool: Spool
) -> None:
    first, second = sorted([spool, other_spool], key=lambda each: each.folder.name)
    await take_in(collector, first.id, "spiffe://mesh.example/ns/bookshop/sa/former", b"")
    async with shipping(spool.root, running):
        await until(stored_up_to(owner, second.id, 1))
    assert first.segments


async def test_a_spool_with_a_torn_end_is_told_and_keeps_no_other_waiting(
    running: Collector, owner: Connection, spool: Spool, other_spool: Spool, usage: SpoolUsage
) -> None:
    first, second = sorted([spool, other_spool], key=lambda each: each.folder.name)
    first.die()
    first.damage(first.frames() + b"\xff" * 100)
    (spool.root / "0-no-spool").mkdir()

    async def removed() -> bool:
        return not first.folder.exists()

    async with shipping(spool.root, running):
        await until(removed)
        await until(stored_up_to(owner, second.id, 1))
        second.append(path="/b")
        await until(stored_up_to(owner, second.id, 2))
        await until(nothing_is_held(usage))
    [gap] = await owner.fetch("SELECT spool, since, until, reason FROM gaps")
    assert tuple(gap) == (first.id, 2, 2, "byte 0: a record's length is out of bounds")
    assert (await verify_store(owner)).sound


async def test_a_damaged_segment_is_passed_over_and_told(
    running: Collector, owner: Connection, spool: Spool, usage: SpoolUsage
) -> None:
    for _ in range(12):
        spool.append(detail="x" * 600_000)
    first, second, *_ = spool.segments
    content = bytearray(first.read_bytes())
    content[2_000_000:2_000_100] = b"?" * 100
    first.write_bytes(content)
    async with shipping(spool.root, running):
        await until(stored_up_to(owner, spool.id, 13))
        await until(nothing_is_held(usage))
        spool.append(path="/after")
        await until(stored_up_to(owner, spool.id, 14))
    [gap] = await owner.fetch("SELECT spool, since, until FROM gaps")
    stored = {row["sequence"] for row in await owner.fetch("SELECT sequence FROM records")}
    assert tuple(gap) == (spool.id, 5, int(second.stem) - 1)
    assert stored == {*range(1, 5), *range(int(second.stem), 15)}
    assert (await verify_store(owner)).sound


def nothing_is_held(usage: SpoolUsage) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return usage.held == 0

    return check


# The collector's side -------------------------------------------------------------------------------------------------


async def ship(collector: Collector, *batches: Batch) -> list[int]:
    async with collector.channel() as channel:
        call = channel.stream_stream(
            f"/{COLLECTOR_SERVICE}/Ship",
            request_serializer=Batch.SerializeToString,
            response_deserializer=Acknowledgement.FromString,
        )
        async with asyncio.timeout(DEADLINE_SECONDS):
            return [each.sequence async for each in call(iter(batches))]


async def test_whoever_has_an_identity_is_told_the_keys(running: Collector) -> None:
    async with running.channel() as channel:
        method = channel.unary_unary(
            f"/{COLLECTOR_SERVICE}/Keys",
            request_serializer=KeysRequest.SerializeToString,
            response_deserializer=AuditKeys.FromString,
        )
        keys = await method(KeysRequest())
        assert (keys.sealing_key, keys.hash_key) == (KEYS.public.sealing, KEYS.hashing)
        running.caller = ValueError("the caller showed no certificate")
        with pytest.raises(grpc.aio.AioRpcError):
            await method(KeysRequest())


async def test_every_batch_is_acknowledged_with_its_spool(running: Collector, spool: Spool) -> None:
    frames = spool.frames()
    assert await ship(running, Batch(spool=spool.id), Batch(spool=spool.id, frames=frames)) == [0, 1]


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        pytest.param(lambda spool: Batch(spool=b"short"), grpc.StatusCode.INVALID_ARGUMENT, id="a bad id"),
        pytest.param(lambda spool: Batch(), grpc.StatusCode.INVALID_ARGUMENT, id="no id"),
        pytest.param(lambda spool: Batch(spool=spool.id, frames=b"x" * 64), grpc.StatusCode.DATA_LOSS, id="garbage"),
    ],
)
async def test_a_bad_batch_is_refused(
    running: Collector, spool: Spool, batch: Callable[[Spool], Batch], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ship(running, batch(spool))
    assert refused.value.code() is code


async def test_a_caller_without_an_identity_is_refused(running: Collector, spool: Spool, owner: Connection) -> None:
    running.caller = ValueError("the caller showed no certificate")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ship(running, Batch(spool=spool.id, frames=spool.frames()))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await owner.fetchval("SELECT count(*) FROM spools") == 0


async def test_a_caller_cannot_ship_what_belongs_to_another(running: Collector, stored: Spool) -> None:
    running.caller = "spiffe://mesh.example/ns/bookshop/sa/storefront"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ship(running, Batch(spool=stored.id))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_store_that_cannot_be_reached_is_told_as_such(spool: Spool, sockets: Path) -> None:
    async with asyncpg.create_pool(f"postgresql://nobody@/x?host={sockets}", min_size=0, max_size=1) as pool:
        collector = Collector(pool, "spiffe://a/b", f"unix:{sockets}/collector.sock")
        await collector.start()
        try:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ship(collector, Batch(spool=spool.id))
        finally:
            await collector.stop()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
