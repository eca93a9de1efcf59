"""Delta xDS over gRPC: one stream, fed by a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from peltast.proxy.xds.delta import Acknowledgement, DeltaSession
from peltast.proxy.xds.resources import Resources
from peltast.proxy.xds.store import Store

__all__ = ["AGGREGATED_DISCOVERY", "SECRET_DISCOVERY", "serve_stream"]

AGGREGATED_DISCOVERY = "envoy.service.discovery.v3.AggregatedDiscoveryService"
SECRET_DISCOVERY = "envoy.service.secret.v3.SecretDiscoveryService"  # noqa: S105 - a name


@dataclass(frozen=True)
class _Event:
    """A request came, or (without one) the store changed."""

    request: DeltaDiscoveryRequest | None = None


async def serve_stream(
    requests: AsyncIterator[DeltaDiscoveryRequest],
    store: Store,
    on_acknowledgement: Callable[[Acknowledgement], None],
    on_settled: Callable[[Resources], None] = lambda _: None,
) -> AsyncIterator[DeltaDiscoveryResponse]:
    """Answers `requests` from `store` until they end.

    Each acknowledgement is handed on as it comes; and so is the set of resources that the client has come to use whole.
    """
    session = DeltaSession()
    events: asyncio.Queue[_Event | None] = asyncio.Queue()
    # Not a task group: it would turn the GeneratorExit of a stream that is given up into an error.
    readers = [asyncio.create_task(_read(requests, events)), asyncio.create_task(_watch(store, events))]
    try:
        while (event := await events.get()) is not None:
            acknowledgement = session.on_request(event.request) if event.request else None
            if acknowledgement is not None:
                on_acknowledgement(acknowledgement)
            for response in session.responses(store.resources):
                yield response
            if session.settled(store.resources):
                on_settled(store.resources)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(requests: AsyncIterator[DeltaDiscoveryRequest], events: asyncio.Queue[_Event | None]) -> None:
    try:
        async for request in requests:
            events.put_nowait(_Event(request))
    finally:
        events.put_nowait(None)


async def _watch(store: Store, events: asyncio.Queue[_Event | None]) -> None:
    async for _ in store.changes():
        events.put_nowait(_Event())
