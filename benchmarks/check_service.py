"""Our check service over gRPC, for an Envoy that asks it by `ext_authz`."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

import grpc
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2 import ExtAuthz
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from google.protobuf.json_format import ParseDict

from peltast.authz.check.documents import check_revision
from peltast.authz.check.front import CheckFront
from peltast.authz.check.grpc import authorization_handler
from peltast.authz.check.pool import EvaluatorPool
from peltast.authz.revision import Revision
from peltast.identity.ca.authority import CONTROL_DNS_NAME
from peltast.identity.rpc import caller, server_credentials, server_options
from peltast.identity.svid import Svid
from peltast.proxy.xds.compile import socket_address, static_cluster
from peltast.proxy.xds.tls import upstream

ADDRESS, PORT = "127.0.30.3", 9191
CLUSTER = "check"
START_SECONDS = 10


class RunningCheckService:
    """Serves `revision` from a thread, over mutual TLS. Leaving it ends it."""

    def __init__(self, revision: Revision, svid: Svid, roots: bytes) -> None:
        self._pool = EvaluatorPool()
        self._front = CheckFront(self._pool)
        self._revision = check_revision(revision).SerializeToString()
        self._credentials = server_credentials(lambda: (svid.key_pem, svid.chain_pem, roots), require_client=True)
        self._serving = threading.Event()
        self._stop = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> RunningCheckService:
        self._thread.start()
        if not self._serving.wait(START_SECONDS):
            raise SystemExit(f"the check service does not serve on {ADDRESS}:{PORT}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        await self._front.take(self._revision)
        server = grpc.aio.server(options=server_options)
        server.add_generic_rpc_handlers((authorization_handler(self._front, caller),))
        server.add_secure_port(f"{ADDRESS}:{PORT}", self._credentials)
        await server.start()
        self._serving.set()
        await self._stop.wait()
        await server.stop(grace=None)
        await self._pool.stop()


def ext_authz() -> HttpFilter:
    """The filter that asks, and denies where it is not answered."""
    service = {"envoy_grpc": {"cluster_name": CLUSTER}, "timeout": "2s"}
    http_filter = HttpFilter(name="envoy.filters.http.ext_authz")
    http_filter.typed_config.Pack(ParseDict({"grpc_service": service, "transport_api_version": "V3"}, ExtAuthz()))
    return http_filter


def check_cluster(principal: str) -> Cluster:
    """Where it asks."""
    return static_cluster(CLUSTER, [socket_address(ADDRESS, PORT)], "grpc", upstream([principal], CONTROL_DNS_NAME))
