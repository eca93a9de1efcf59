"""Envoys with an authority of their own: what a mesh would send them is in their configuration instead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext, UpstreamTlsContext
from google.protobuf.json_format import MessageToDict
from spiffe import SpiffeId, TrustDomain
from support.starts import leave_start

from peltast.cli.readiness import envoy_is_ready, wait_until
from peltast.identity.ca.authority import Authority, issue, make_intermediate, make_root
from peltast.identity.certificates import pem
from peltast.identity.sds import BUNDLES_SECRET, SVID_SECRET, secrets
from peltast.identity.svid import Svid, new_key_and_csr
from peltast.proxy.sidecar.binary import find_envoy, install_module
from peltast.proxy.sidecar.supervise import dying_with_parent
from peltast.proxy.xds.compile import socket_address

TRUST_DOMAIN = TrustDomain("cluster.local")
SPOOL_BYTES = 8 << 30


class Envoys:
    """Runs Envoys below `folder`, which trust one authority."""

    def __init__(self, folder: Path) -> None:
        now = datetime.now(UTC)
        self.folder = folder
        self.authority: Authority = make_intermediate(make_root(TRUST_DOMAIN, now), TRUST_DOMAIN, now)
        self.modules = folder / "modules"
        self.modules.mkdir()
        self.module = install_module(self.modules)

    def svid(self, name: str) -> Svid:
        """An SVID with the SPIFFE ID `name`."""
        key, csr = new_key_and_csr()
        return Svid(key, issue(self.authority, csr, SpiffeId(name), datetime.now(UTC))[:-1])

    @contextlib.contextmanager
    def running(
        self,
        name: str,
        listeners: Sequence[Listener],
        clusters: Sequence[Cluster],
        svid: str | None = None,
        spool_bytes: int = SPOOL_BYTES,
    ) -> Iterator[int]:
        """An Envoy with one worker that takes connections; gives its process id."""
        folder = self.folder / name
        folder.mkdir()
        leave_start(folder / "spool")
        if svid is not None:
            named = secrets(self.svid(svid), {TRUST_DOMAIN.name: pem(self.authority.chain[-1])})
            for transport in _transports(listeners, clusters):
                repack(transport, lambda tls: _inline(tls, named))
        config = folder / "bootstrap.json"
        config.write_text(json.dumps(_bootstrap(name, folder / "admin.sock", listeners, clusters)))
        environment = {
            **os.environ,
            "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(self.modules),
            "PELTAST_SPOOL": str(folder / "spool"),
            "PELTAST_SPOOL_BYTES": str(spool_bytes),
        }
        command = [str(find_envoy().path), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
        log_file = folder / "envoy.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                dying_with_parent([*command, "--log-level", "warning"]), stdout=log, stderr=log, env=environment
            )
        try:
            asyncio.run(wait_until(lambda: envoy_is_ready(folder / "admin.sock"), log_file.read_text))
            yield process.pid
        finally:
            process.kill()
            process.wait()


def manager_of(listener: Listener) -> Any:
    """The packed connection manager of `listener`."""
    return listener.filter_chains[0].filters[-1].typed_config


def repack(packed: Any, change: Callable[[Any], None]) -> None:
    """Changes the message in `packed` (an Any)."""
    for kind in (HttpConnectionManager, DownstreamTlsContext, UpstreamTlsContext):
        message = kind()
        if packed.Unpack(message):
            change(message)
            packed.Pack(message)
            return
    raise TypeError(packed.type_url)


def backend(address: str, ports: Sequence[int]) -> list[Listener]:
    """An application that answers at once."""
    manager = HttpConnectionManager(stat_prefix="backend")
    host = manager.route_config.virtual_hosts.add(name="all", domains=["*"])
    route = host.routes.add()
    route.match.prefix = "/"
    route.direct_response.status = 200
    route.direct_response.body.inline_string = "hello"
    router = manager.http_filters.add(name="envoy.filters.http.router")
    router.typed_config.type_url = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    listeners = [Listener(name=f"backend_{port}", address=socket_address(address, port)) for port in ports]
    for listener in listeners:
        network_filter = listener.filter_chains.add().filters.add(name="envoy.filters.network.http_connection_manager")
        network_filter.typed_config.Pack(manager)
    return listeners


def _transports(listeners: Sequence[Listener], clusters: Sequence[Cluster]) -> list[Any]:
    chains = [chain for listener in listeners for chain in listener.filter_chains]
    return [each.transport_socket.typed_config for each in [*chains, *clusters] if each.HasField("transport_socket")]


def _inline(tls: Any, named: dict[str, Any]) -> None:
    """Puts the secrets themselves where they are asked for."""
    common = tls.common_tls_context
    del common.tls_certificate_sds_secret_configs[:]
    common.tls_certificates.append(named[SVID_SECRET].tls_certificate)
    matchers = common.combined_validation_context.default_validation_context.match_typed_subject_alt_names
    validation = named[BUNDLES_SECRET].validation_context
    validation = type(validation).FromString(validation.SerializeToString())
    validation.match_typed_subject_alt_names.extend(matchers)
    common.validation_context.CopyFrom(validation)


def _bootstrap(name: str, admin: Path, listeners: Sequence[Listener], clusters: Sequence[Cluster]) -> dict[str, Any]:
    def plain(message: Any) -> Any:
        return MessageToDict(message, preserving_proto_field_name=True)

    return {
        "node": {"id": name, "cluster": "peltast"},
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "static_resources": {"listeners": [*map(plain, listeners)], "clusters": [*map(plain, clusters)]},
    }
