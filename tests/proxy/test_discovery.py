"""Who is given which resources, over real mutual TLS."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.protobuf.struct_pb2 import Struct
from google.rpc.status_pb2 import Status
from spiffe import SpiffeId, TrustDomain

from peltast.authz.revision import Revision
from peltast.identity.ca.authority import Authority, issue, make_intermediate, make_root
from peltast.identity.certificates import pem
from peltast.identity.rpc import channel_credentials, generic_handler, open_channel, server_credentials, server_options
from peltast.identity.svid import Svid, new_key_and_csr
from peltast.proxy.xds.compile import Surroundings
from peltast.proxy.xds.discovery import DiscoveryService, ProxyStatus
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, MODULE_METADATA, Resources
from peltast.proxy.xds.serve import AGGREGATED_DISCOVERY

DEADLINE_SECONDS = 20.0
MODULE = "peltast_filter_0123"
STOREFRONT, LEDGER, REPORTS = (
    f"spiffe://mesh.example/ns/bookshop/sa/{name}" for name in ("storefront", "ledger", "reports")
)

Compiled = Callable[..., Resources]


class ControlPlane:
    """Discovery on a port of its own."""

    def __init__(self) -> None:
        domain, now = TrustDomain("mesh.example"), datetime.now(UTC)
        self._authority: Authority = make_intermediate(make_root(domain, now), domain, now)
        self._roots = pem(self._authority.chain[-1])
        self.statuses: list[ProxyStatus] = []
        self.live: list[tuple[str, int]] = []
        self.discovery = DiscoveryService(
            lambda module: Surroundings(
                module, ("127.0.0.1", 15013), ("127.0.0.1", 15012), "spiffe://mesh.example/peltast/control"
            ),
            self.statuses.append,
            lambda version, sidecars: self.live.append((version, sidecars)),
        )

    def svid(self, spiffe_id: str) -> Svid:
        key, csr = new_key_and_csr()
        return Svid(key, issue(self._authority, csr, SpiffeId(spiffe_id), datetime.now(UTC))[:-1])

    async def start(self) -> None:
        own = self.svid("spiffe://mesh.example/peltast/control")
        credentials = server_credentials(lambda: (own.key_pem, own.chain_pem, self._roots), require_client=True)
        self._server = grpc.aio.server(options=server_options)
        stream = (self.discovery.delta_stream, DeltaDiscoveryRequest, DeltaDiscoveryResponse)
        handler = generic_handler(AGGREGATED_DISCOVERY, streams={"DeltaAggregatedResources": stream})
        self._server.add_generic_rpc_handlers((handler,))
        self._port = self._server.add_secure_port("127.0.0.1:0", credentials)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=None)

    def channel(self, spiffe_id: str) -> grpc.aio.Channel:
        svid = self.svid(spiffe_id)
        credentials = channel_credentials(self._roots, svid.chain_pem, svid.key_pem)
        return open_channel(f"127.0.0.1:{self._port}", credentials)


@pytest.fixture
async def control() -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    await plane.start()
    try:
        yield plane
    finally:
        await plane.stop()


def open_stream(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(
        f"/{AGGREGATED_DISCOVERY}/DeltaAggregatedResources",
        request_serializer=DeltaDiscoveryRequest.SerializeToString,
        response_deserializer=DeltaDiscoveryResponse.FromString,
    )()


def first_request(node: str, module: str = MODULE, type_url: str = LISTENER) -> DeltaDiscoveryRequest:
    metadata = Struct()
    metadata.update({MODULE_METADATA: module})
    return DeltaDiscoveryRequest(node=Node(id=node, metadata=metadata), type_url=type_url)


async def receive(stream: Any, count: int) -> list[DeltaDiscoveryResponse]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [await stream.read() for _ in range(count)]


@pytest.mark.parametrize("name", ["storefront", "ledger-1"])
async def test_a_sidecar_is_sent_its_own_resources(
    control: ControlPlane, revision: Revision, compiled: Compiled, name: str
) -> None:
    control.discovery.take(revision)
    expected = compiled(f"bookshop/{name}", module=MODULE)[LISTENER]
    async with control.channel(revision.snapshot.workloads[f"bookshop/{name}"].principal) as channel:
        stream = open_stream(channel)
        await stream.write(first_request(f"bookshop/{name}"))
        responses = await receive(stream, len(expected))
    assert {each.resources[0].name: each.resources[0].version for each in responses} == {
        name: each.version for name, each in expected.items()
    }


@pytest.mark.parametrize(
    ("caller", "node", "module", "code"),
    [
        pytest.param(LEDGER, "bookshop/storefront", MODULE, grpc.StatusCode.PERMISSION_DENIED, id="another's node"),
        pytest.param(LEDGER, "bookshop/missing", MODULE, grpc.StatusCode.PERMISSION_DENIED, id="nobody's node"),
        pytest.param(LEDGER, "", MODULE, grpc.StatusCode.PERMISSION_DENIED, id="no node"),
        pytest.param(
            "spiffe://mesh.example/peltast/collector",
            "bookshop/storefront",
            MODULE,
            grpc.StatusCode.PERMISSION_DENIED,
            id="the collector",
        ),
        pytest.param(STOREFRONT, "bookshop/storefront", "", grpc.StatusCode.INVALID_ARGUMENT, id="no module"),
        pytest.param(
            STOREFRONT, "bookshop/storefront", "../evil", grpc.StatusCode.INVALID_ARGUMENT, id="a path for a module"
        ),
    ],
)
async def test_nobody_is_sent_what_is_not_theirs(
    control: ControlPlane, revision: Revision, caller: str, node: str, module: str, code: grpc.StatusCode
) -> None:
    control.discovery.take(revision)
    async with control.channel(caller) as channel:
        stream = open_stream(channel)
        await stream.write(first_request(node, module))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await receive(stream, 1)
    assert refused.value.code() is code


@pytest.mark.parametrize("error", [pytest.param(None, id="ACK"), pytest.param("bad cluster", id="NACK")])
async def test_what_a_sidecar_says_of_a_resource_is_kept_and_reported(
    control: ControlPlane, revision: Revision, error: str | None
) -> None:
    control.discovery.take(revision)
    async with control.channel(LEDGER) as channel:
        stream = open_stream(channel)
        await stream.write(first_request("bookshop/ledger-1", type_url=CLUSTER))
        [response, _] = await receive(stream, 2)
        detail = None if error is None else Status(message=error)
        await stream.write(DeltaDiscoveryRequest(type_url=CLUSTER, response_nonce=response.nonce, error_detail=detail))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not control.statuses:  # noqa: ASYNC110 - what is waited for is a message
                await asyncio.sleep(0.01)
    sent = response.resources[0]
    status = ProxyStatus("bookshop/ledger-1", CLUSTER, sent.name, sent.version, error)
    assert control.statuses == [status]
    assert control.discovery.statuses == {("bookshop/ledger-1", CLUSTER, sent.name): status}


async def test_a_configuration_is_live_when_every_sidecar_uses_all_of_it(
    control: ControlPlane, revision: Revision, compiled: Compiled
) -> None:
    control.discovery.take(revision)
    first = revision.snapshot.version
    async with control.channel(REPORTS) as channel, control.channel(STOREFRONT) as other:
        reports, storefront = open_stream(channel), open_stream(other)
        await acknowledge_all(reports, "bookshop/reports", compiled)
        expected = sum(map(len, compiled("bookshop/reports", module=MODULE).values()))
        await eventually(lambda: len(control.discovery.statuses) == expected)
        assert control.live == [], "the storefront is registered, and away"
        await acknowledge_all(storefront, "bookshop/storefront", compiled)
        await eventually(lambda: control.live == [(first, 2)])
        programs = {**revision.programs, "bookshop/storefront": b"{}"}
        snapshot = dataclasses.replace(revision.snapshot, trust_domain="other.example")
        control.discovery.take(dataclasses.replace(revision, snapshot=snapshot, programs=programs))
        [response] = await receive(storefront, 1)
        assert control.live == [(first, 2)], "the storefront has not acknowledged what it was sent"
        await storefront.write(DeltaDiscoveryRequest(type_url=EXTENSION_CONFIG, response_nonce=response.nonce))
        await eventually(lambda: control.live == [(first, 2), (snapshot.version, 2)])
        control.discovery.take(dataclasses.replace(revision, snapshot=snapshot, programs=programs))
        assert len(control.live) == 2, "it is told once"


async def acknowledge_all(stream: Any, node: str, compiled: Compiled) -> None:
    """Asks as Envoy does, and accepts everything."""
    resources = compiled(node, module=MODULE)
    for type_url, names in ((type_url, names) for type_url, names in resources.items() if names):
        request = first_request(node, type_url=type_url)
        if type_url == EXTENSION_CONFIG:
            request.resource_names_subscribe.extend(names)
        await stream.write(request)
        for response in await receive(stream, len(names)):
            await stream.write(DeltaDiscoveryRequest(type_url=type_url, response_nonce=response.nonce))


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for is a message
            await asyncio.sleep(0.01)
