"""The control plane's side of xDS: every workload gets the resources of its own sidecar, and no other's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from peltast.authz.revision import Revision
from peltast.identity.certificates import NotAnSvid
from peltast.identity.rpc import caller
from peltast.proxy.xds.compile import Surroundings, compile_resources
from peltast.proxy.xds.delta import Acknowledgement
from peltast.proxy.xds.resources import MODULE_METADATA, Resources
from peltast.proxy.xds.serve import serve_stream
from peltast.proxy.xds.store import Store

__all__ = ["DiscoveryService", "ProxyStatus"]

_MODULE_NAME = re.compile(r"[a-z0-9_]{1,80}")

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class ProxyStatus:
    """What a sidecar last said of one resource."""

    workload: str
    type_url: str
    resource: str
    version: str
    error: str | None


@dataclass
class _Proxy:
    workload: str
    module: str
    store: Store
    uses: Resources | None = None
    """The set that it has said it uses, whole."""


class DiscoveryService:
    """Delta ADS for sidecars. Holds one revision at a time, and what every sidecar said of every resource."""

    def __init__(
        self,
        surroundings_of: Callable[[str], Surroundings],
        report_status: Callable[[ProxyStatus], None],
        report_live: Callable[[str, int], None],
    ) -> None:
        self._surroundings_of = surroundings_of
        self._report_status = report_status
        self._report_live = report_live
        self._is_live = False
        self._revision: Revision | None = None
        self._connected: dict[int, _Proxy] = {}
        self.statuses: dict[tuple[str, str, str], ProxyStatus] = {}

    def take(self, revision: Revision) -> None:
        """Puts `revision` in force: every connected sidecar is sent what changed for it."""
        before, self._revision = self._revision, revision
        if before is None or before.snapshot.version != revision.snapshot.version:
            self._is_live = False
        for proxy in self._connected.values():
            proxy.store.replace(self._resources(proxy.workload, proxy.module))
        self._tell_if_live()

    def _tell_if_live(self) -> None:
        """Reports a configuration, once, when every sidecar has said that it uses what is its own of it.

        A sidecar that is away goes on with what it had: so each that is to be started must be there.
        """
        if self._is_live or self._revision is None:
            return
        workloads = self._revision.snapshot.workloads.values()
        expected = {workload.full_name for workload in workloads if workload.command}
        proxies = self._connected.values()
        is_there = expected <= {proxy.workload for proxy in proxies}
        if proxies and is_there and all(proxy.uses == proxy.store.resources for proxy in proxies):
            self._is_live = True
            self._report_live(self._revision.snapshot.version, len(proxies))

    def _resources(self, workload: str, module: str) -> Resources:
        revision = self._revision
        if revision is None or workload not in revision.snapshot.workloads:
            return {}
        return compile_resources(revision, revision.snapshot.workloads[workload], self._surroundings_of(module))

    async def delta_stream(
        self, requests: AsyncIterator[DeltaDiscoveryRequest], context: Context
    ) -> AsyncIterator[DeltaDiscoveryResponse]:
        """Serves one sidecar until it goes."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        proxy = await self._admit(first.node, context)
        key = id(proxy)
        self._connected[key] = proxy
        log.info("sidecar connected", workload=proxy.workload)
        try:
            stream = serve_stream(
                _chain(first, requests),
                proxy.store,
                lambda ack: self._note(proxy.workload, ack),
                lambda resources: self._settle(proxy, resources),
            )
            async for response in stream:
                yield response
        finally:
            del self._connected[key]
            log.info("sidecar disconnected", workload=proxy.workload)
            self._tell_if_live()

    async def _admit(self, node: Node, context: Context) -> _Proxy:
        """The proxy that `node` says it is, if its SVID is that workload's: the node's word is only a hint."""
        try:
            principal = str(caller(context))
        except NotAnSvid as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        workloads = self._revision.snapshot.workloads if self._revision else {}
        workload = workloads.get(node.id)
        if workload is None or workload.principal != principal:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{principal} is not the workload {node.id!r}")
        module = node.metadata.fields[MODULE_METADATA].string_value
        if not _MODULE_NAME.fullmatch(module):
            allowed = f"node metadata {MODULE_METADATA} is {module!r}; the name of a module is expected"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, allowed)
        return _Proxy(node.id, module, Store(self._resources(node.id, module)))

    def _settle(self, proxy: _Proxy, resources: Resources) -> None:
        proxy.uses = resources
        self._tell_if_live()

    def _note(self, workload: str, acknowledgement: Acknowledgement) -> None:
        for name, version in acknowledgement.versions.items():
            status = ProxyStatus(workload, acknowledgement.type_url, name, version, acknowledgement.error)
            self.statuses[workload, acknowledgement.type_url, name] = status
            self._report_status(status)


async def _chain(
    first: DeltaDiscoveryRequest, rest: AsyncIterator[DeltaDiscoveryRequest]
) -> AsyncIterator[DeltaDiscoveryRequest]:
    yield first
    async for request in rest:
        yield request
