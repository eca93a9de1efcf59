"""The collector: takes in what nodes ship, each over mutual TLS and each its own spools only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import grpc
import structlog

from peltast.audit.collector.collect import BadBatch, Collector, NotTheOwner
from peltast.audit.protos.collector_pb2 import Acknowledgement, AuditKeys, Batch, KeysRequest
from peltast.audit.store.errors import DATABASE_ERRORS

__all__ = ["collector_methods"]

SPOOL_ID_BYTES = 16

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


def collector_methods(
    pool: asyncpg.Pool[Any], collector: Collector, caller: Callable[[Context], object]
) -> tuple[dict[str, tuple[Any, Any, Any]], dict[str, tuple[Any, Any, Any]]]:
    """The methods of the gRPC service, those of one answer and those that stream.

    `caller` tells the SPIFFE ID of whoever calls, or raises ValueError.
    """

    async def keys(_: KeysRequest, context: Context) -> AuditKeys:
        try:
            caller(context)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        public = collector.keyring.keys.public
        return AuditKeys(sealing_key=public.sealing, hash_key=public.hashing)

    async def ship(batches: AsyncIterator[Batch], context: Context) -> AsyncIterator[Acknowledgement]:
        try:
            owner = str(caller(context))
            async for batch in batches:
                if len(batch.spool) != SPOOL_ID_BYTES:
                    raise ValueError(f"a spool's id has {len(batch.spool)} bytes; {SPOOL_ID_BYTES} are expected")
                async with pool.acquire() as connection:
                    sequence = await collector.take_in(connection, owner, batch)
                yield Acknowledgement(spool=batch.spool, sequence=sequence)
        except NotTheOwner as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except BadBatch as error:
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (OSError, *DATABASE_ERRORS) as error:
            log.warning("the store cannot be reached", error=str(error))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the store cannot be reached")

    return {"Keys": (keys, KeysRequest, AuditKeys)}, {"Ship": (ship, Batch, Acknowledgement)}
