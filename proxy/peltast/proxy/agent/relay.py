"""Relays the control plane's resources to this node's Envoy.

An acknowledgement goes up only when Envoy has given its own, so that *live* means live in Envoy. What Envoy refuses is
taken back to what it last accepted: a restarted Envoy never gets a configuration that is known to be bad.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.rpc.code_pb2 import INVALID_ARGUMENT
from google.rpc.status_pb2 import Status

from peltast.proxy.agent import last_good
from peltast.proxy.xds.delta import Acknowledgement
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, Resource
from peltast.proxy.xds.serve import AGGREGATED_DISCOVERY
from peltast.proxy.xds.store import Store

__all__ = ["Relay", "RelayState"]

RELAYED = (CLUSTER, EXTENSION_CONFIG, LISTENER)
_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

log = structlog.get_logger()


@dataclass
class _Pending:
    """A response of the control plane whose resources Envoy has not spoken on yet."""

    nonce: str
    type_url: str
    versions: dict[str, str]


class RelayState:
    """What is relayed, and what Envoy said of it. No network here."""

    def __init__(self, store: Store, file: Path) -> None:
        self._store = store
        self._file = file
        self._good = last_good.load(file)
        self._pending: list[_Pending] = []
        store.replace(self._good)

    def subscriptions(self, node: Node) -> list[DeltaDiscoveryRequest]:
        """The first requests of a new stream: everything, less what Envoy has accepted.

        What Envoy has not spoken on yet is named without a version: it comes again, with a nonce to answer by.
        """
        self._pending.clear()
        requests = []
        for type_url in RELAYED:
            good = self._good.get(type_url, {})
            versions = {
                name: each.version if good.get(name) == each else "" for name, each in self._resources(type_url).items()
            }
            requests.append(
                DeltaDiscoveryRequest(
                    node=node, type_url=type_url, resource_names_subscribe=["*"], initial_resource_versions=versions
                )
            )
        return requests

    def on_response(self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest | None:
        """Takes in a response; gives an acknowledgement where Envoy has nothing to say on it."""
        current = dict(self._resources(response.type_url))
        for message in response.resources:
            current[message.name] = Resource(message.name, message.version, message.resource)
        for name in response.removed_resources:
            current.pop(name, None)
            self._good = last_good.with_resource(self._good, response.type_url, name, None)
        if response.removed_resources:
            last_good.save(self._file, self._good)
        self._store.update(response.type_url, current)
        good = self._good.get(response.type_url, {})
        # Envoy accepted the others already, or goes back to them, and may be sent nothing that it could speak on.
        versions = {name: current[name].version for name in _names(response) if current[name] != good.get(name)}
        if not versions:
            return _answer(response.type_url, response.nonce, None)
        self._pending.append(_Pending(response.nonce, response.type_url, versions))
        return None

    def on_acknowledgement(self, acknowledgement: Acknowledgement) -> list[DeltaDiscoveryRequest]:
        """Takes in what Envoy said; gives what the control plane is to be told."""
        for name, version in acknowledgement.versions.items():
            current = self._resources(acknowledgement.type_url).get(name)
            if current is None or current.version != version:
                continue  # a newer one is on its way
            if acknowledgement.accepted:
                self._good = last_good.with_resource(self._good, acknowledgement.type_url, name, current)
            else:
                self._take_back(acknowledgement.type_url, name)
        last_good.save(self._file, self._good)
        return self._settle(acknowledgement)

    def _take_back(self, type_url: str, name: str) -> None:
        good = self._good.get(type_url, {}).get(name)
        self._store.replace(last_good.with_resource(self._store.resources, type_url, name, good))

    def _settle(self, acknowledgement: Acknowledgement) -> list[DeltaDiscoveryRequest]:
        """The answers to the responses on which Envoy has now said all it will."""
        type_url, error = acknowledgement.type_url, acknowledgement.error
        answers = []
        for name, version in acknowledgement.versions.items():
            about = [each for each in self._pending if each.type_url == type_url and name in each.versions]
            spoken = [each for each in about if each.versions[name] == version]
            # Envoy speaks in order: on what was replaced before it could be sent, it never will.
            settled = about[: about.index(spoken[-1]) + 1] if spoken else []
            for each in settled:
                del each.versions[name]
            ended = [each for each in settled if not each.versions or (each in spoken and error is not None)]
            self._pending = [each for each in self._pending if each not in ended]
            answers += [_answer(type_url, each.nonce, error) for each in ended if each in spoken]
        return answers

    def _resources(self, type_url: str) -> dict[str, Resource]:
        return dict(self._store.resources.get(type_url, {}))


def _names(response: DeltaDiscoveryResponse) -> list[str]:
    return [message.name for message in response.resources]


def _answer(type_url: str, nonce: str, error: str | None) -> DeltaDiscoveryRequest:
    detail = None if error is None else Status(code=INVALID_ARGUMENT, message=error)
    return DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce, error_detail=detail)


class Relay:
    """The stream to the control plane, kept up for ever."""

    def __init__(self, store: Store, file: Path, node: Node, open_channel: Callable[[], grpc.aio.Channel]) -> None:
        self._state = RelayState(store, file)
        self._node = node
        self._open_channel = open_channel
        self._outgoing: asyncio.Queue[DeltaDiscoveryRequest] = asyncio.Queue()
        self._failures = 0

    def on_acknowledgement(self, acknowledgement: Acknowledgement) -> None:
        """Takes in what Envoy said of resources."""
        if acknowledgement.error is not None:
            log.warning("envoy refused", resources=list(acknowledgement.versions), error=acknowledgement.error)
        for answer in self._state.on_acknowledgement(acknowledgement):
            self._outgoing.put_nowait(answer)

    async def run(self) -> None:
        """Keeps a stream up. Each is opened with the SVID then in force."""
        while True:
            try:
                async with self._open_channel() as channel:
                    await self._stream(channel)
            except grpc.aio.AioRpcError as error:
                log.warning("control plane lost", error=error.details())
            await asyncio.sleep(_RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)])
            self._failures += 1

    async def _stream(self, channel: grpc.aio.Channel) -> None:
        call = channel.stream_stream(
            f"/{AGGREGATED_DISCOVERY}/DeltaAggregatedResources",
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        self._outgoing = asyncio.Queue()
        for request in self._state.subscriptions(self._node):
            self._outgoing.put_nowait(request)
        async for response in call(_drain(self._outgoing)):
            self._failures = 0
            answer = self._state.on_response(response)
            if answer is not None:
                self._outgoing.put_nowait(answer)


async def _drain(queue: asyncio.Queue[DeltaDiscoveryRequest]) -> AsyncIterator[DeltaDiscoveryRequest]:
    while True:
        yield await queue.get()
