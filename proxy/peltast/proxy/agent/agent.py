"""A sidecar's agent: gets its identity, serves its Envoy over one socket, and keeps it running."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from google.protobuf.struct_pb2 import Struct

from peltast.identity.client import IdentityClient
from peltast.identity.files import make_private_folder, write_private
from peltast.identity.rpc import channel_credentials, generic_handler, open_channel, server_options
from peltast.identity.sds import secrets
from peltast.proxy.agent.relay import Relay
from peltast.proxy.sidecar.binary import Envoy, install_module
from peltast.proxy.sidecar.bootstrap import bootstrap
from peltast.proxy.sidecar.supervise import Supervised
from peltast.proxy.xds.delta import Acknowledgement
from peltast.proxy.xds.resources import MODULE_METADATA, SECRET, resource
from peltast.proxy.xds.serve import AGGREGATED_DISCOVERY, SECRET_DISCOVERY, serve_stream
from peltast.proxy.xds.store import Store

__all__ = ["Agent", "AgentSettings"]


@dataclass(frozen=True)
class AgentSettings:
    """What an agent is told when it is started."""

    workload: str
    """Full name of the workload whose sidecar this is."""
    trust_domain: str
    state: Path
    """Folder of this sidecar's own; mode 0700."""
    sockets: Path
    """Folder for Unix sockets, whose paths must be short."""
    control_address: str
    spool_bytes: int
    concurrency: int

    @property
    def spool(self) -> Path:
        """Folder of the sidecar's audit spools."""
        return self.state / "spool"


class Agent:
    """One sidecar's agent. `before_start` comes before every start of its Envoy."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: IdentityClient,
        envoy: Envoy,
        before_start: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._before_start = before_start
        self._identity = identity
        self._envoy = envoy
        self._folder = make_private_folder(settings.state)
        self._socket = settings.sockets / "agent.sock"
        self._secrets = Store()
        self._resources = Store()
        modules = make_private_folder(self._folder / "modules")
        self._environment = {
            "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(modules),
            "PELTAST_SPOOL": str(settings.spool),
            "PELTAST_SPOOL_BYTES": str(settings.spool_bytes),
            "PATH": os.environ.get("PATH", ""),
        }
        metadata = Struct()
        metadata.update({MODULE_METADATA: install_module(modules)})
        node = Node(id=settings.workload, cluster="peltast", metadata=metadata)
        self._relay = Relay(self._resources, self._folder / "last-good.pb", node, self._open_channel)

    async def run(self) -> None:
        """Runs for ever."""
        server = await self._serve()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._identity.keep_fresh())
                group.create_task(self._follow_identity())
                group.create_task(self._relay.run())
                group.create_task(self._envoy_process().run())
        finally:
            await server.stop(grace=None)

    def _open_channel(self) -> grpc.aio.Channel:
        svid = self._identity.svid
        credentials = channel_credentials(self._identity.roots, svid.chain_pem, svid.key_pem)
        return open_channel(self._settings.control_address, credentials)

    async def _follow_identity(self) -> None:
        bundles = {self._settings.trust_domain: self._identity.roots}
        async for svid in self._identity.changes():
            named = secrets(svid, bundles)
            self._secrets.update(SECRET, {name: resource(name, secret) for name, secret in named.items()})

    async def _serve(self) -> grpc.aio.Server:
        """Serves ADS and SDS on the agent's socket, in a folder that only its owner can enter."""
        self._socket.unlink(missing_ok=True)
        server = grpc.aio.server(options=server_options)
        server.add_generic_rpc_handlers(
            (
                _delta(
                    AGGREGATED_DISCOVERY, "DeltaAggregatedResources", self._resources, self._relay.on_acknowledgement
                ),
                _delta(SECRET_DISCOVERY, "DeltaSecrets", self._secrets, lambda _: None),
            )
        )
        server.add_insecure_port(f"unix:{self._socket}")
        await server.start()
        self._socket.chmod(0o600)
        return server

    def _envoy_process(self) -> Supervised:
        config = self._folder / "bootstrap.json"
        admin = self._settings.sockets / "admin.sock"
        write_private(config, bootstrap(self._settings.workload, self._socket, admin).encode())
        command = [
            str(self._envoy.path),
            *("--config-path", str(config)),
            *("--concurrency", str(self._settings.concurrency)),
            *("--disable-hot-restart", "--log-level", "warning"),
        ]
        return Supervised("envoy", command, self._envoy_environment, self._folder / "envoy.log")

    async def _envoy_environment(self) -> Mapping[str, str]:
        await self._before_start()
        return self._environment


def _delta(
    service: str, method: str, store: Store, on_acknowledgement: Callable[[Acknowledgement], None]
) -> grpc.GenericRpcHandler[Any, Any]:
    async def run(requests: AsyncIterator[DeltaDiscoveryRequest], _: Any) -> AsyncIterator[DeltaDiscoveryResponse]:
        async for response in serve_stream(requests, store, on_acknowledgement):
            yield response

    streams: Mapping[str, Any] = {method: (run, DeltaDiscoveryRequest, DeltaDiscoveryResponse)}
    return generic_handler(service, streams=streams)
