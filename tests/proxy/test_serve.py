from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.rpc.status_pb2 import Status

from peltast.proxy.xds.delta import Acknowledgement
from peltast.proxy.xds.resources import CLUSTER, LISTENER, Resource
from peltast.proxy.xds.serve import serve_stream
from peltast.proxy.xds.store import Store

MakeResource = Callable[..., Resource]

DEADLINE_SECONDS = 10.0


class Client:
    """The far end of one stream."""

    def __init__(self, store: Store) -> None:
        self._requests: asyncio.Queue[DeltaDiscoveryRequest | None] = asyncio.Queue()
        self.acknowledgements: list[Acknowledgement] = []
        self.stream = serve_stream(self._sent(), store, self.acknowledgements.append)

    async def _sent(self) -> AsyncIterator[DeltaDiscoveryRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    def send(self, type_url: str = CLUSTER, nonce: str = "", error: str | None = None) -> None:
        detail = None if error is None else Status(message=error)
        self._requests.put_nowait(DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce, error_detail=detail))

    def hang_up(self) -> None:
        self._requests.put_nowait(None)

    async def receive(self) -> DeltaDiscoveryResponse:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await anext(self.stream)

    async def rest(self) -> list[DeltaDiscoveryResponse]:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return [response async for response in self.stream]


def names(response: DeltaDiscoveryResponse) -> list[str]:
    return [each.name for each in response.resources] + [f"-{name}" for name in response.removed_resources]


async def test_a_request_is_answered_from_the_store(make_resource: MakeResource) -> None:
    client = Client(Store({CLUSTER: {"a": make_resource("a")}}))
    client.send()
    assert names(await client.receive()) == ["a"]
    client.hang_up()
    assert await client.rest() == []


async def test_a_change_of_the_store_is_pushed(make_resource: MakeResource) -> None:
    store = Store()
    client = Client(store)
    client.send()
    waiting = asyncio.create_task(client.receive())
    store.update(CLUSTER, {"a": make_resource("a")})
    assert names(await waiting) == ["a"]
    store.update(CLUSTER, {})
    assert names(await client.receive()) == ["-a"]
    client.hang_up()
    assert await client.rest() == []


async def test_changes_of_other_types_and_to_the_same_are_not_pushed(make_resource: MakeResource) -> None:
    store = Store()
    client = Client(store)
    client.send()
    waiting = asyncio.create_task(client.receive())
    store.update(LISTENER, {"l": make_resource("l", type_url=LISTENER)})
    store.update(CLUSTER, {"a": make_resource("a")})
    assert names(await waiting) == ["a"]
    store.update(CLUSTER, {"a": make_resource("a")})
    client.hang_up()
    assert await client.rest() == []


@pytest.mark.parametrize("error", [pytest.param(None, id="ACK"), pytest.param("bad", id="NACK")])
async def test_what_the_client_says_of_a_response_is_handed_on(make_resource: MakeResource, error: str | None) -> None:
    a = make_resource("a")
    client = Client(Store({CLUSTER: {"a": a}}))
    client.send()
    response = await client.receive()
    client.send(nonce=response.nonce, error=error)
    client.hang_up()
    assert await client.rest() == []
    assert client.acknowledgements == [Acknowledgement(CLUSTER, {"a": a.version}, error)]


async def test_a_store_serves_several_streams_each_by_itself(make_resource: MakeResource) -> None:
    store = Store({CLUSTER: {"a": make_resource("a")}})
    first, second = Client(store), Client(store)
    for client in (first, second):
        client.send()
        assert names(await client.receive()) == ["a"]
    first.hang_up()
    assert await first.rest() == []
    store.update(CLUSTER, {"a": make_resource("a", "changed")})
    assert names(await second.receive()) == ["a"]
    second.hang_up()
    assert await second.rest() == []


async def test_a_stream_that_is_given_up_leaves_no_task_behind(make_resource: MakeResource) -> None:
    """gRPC lets go of a cancelled call's stream between two responses."""
    before = asyncio.all_tasks()
    client = Client(Store({CLUSTER: {"a": make_resource("a")}}))
    client.send()
    await client.receive()
    await client.stream.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == before


async def test_a_reader_of_the_store_sees_the_last_set_and_no_half_made_one(make_resource: MakeResource) -> None:
    store = Store()
    changes = store.changes()
    assert await anext(changes) == {}
    for content in ("1", "2", "3"):
        store.replace({CLUSTER: {"a": make_resource("a", content)}})
    last = {CLUSTER: {"a": make_resource("a", "3")}}
    assert await anext(changes) == last
    waiting = asyncio.ensure_future(anext(changes))
    store.replace(dict(last))
    store.replace({})
    assert await waiting == {}
