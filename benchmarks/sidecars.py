"""Sidecars to measure: made by the compiler that makes real ones, with what they would be sent put in its place."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from check_service import RunningCheckService
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext, UpstreamTlsContext
from google.protobuf.json_format import MessageToDict
from spiffe import SpiffeId, TrustDomain

from peltast.audit.shipper import POLL_SECONDS
from peltast.audit.spool import SpoolReader, spool_folders
from peltast.authz._engine import SpoolUsage, scan_frames
from peltast.authz.revision import Revision, compile_revision
from peltast.cli.readiness import envoy_is_ready, wait_until
from peltast.identity.ca.authority import Authority, issue, make_intermediate, make_root
from peltast.identity.certificates import pem
from peltast.identity.sds import BUNDLES_SECRET, SVID_SECRET, secrets
from peltast.identity.svid import Svid, new_key_and_csr
from peltast.policies.snapshot import load
from peltast.proxy.sidecar.binary import find_envoy, install_module
from peltast.proxy.sidecar.supervise import dying_with_parent
from peltast.proxy.xds.compile import (
    application_cluster_name,
    inbound_listener,
    outbound_cluster,
    outbound_listener,
    socket_address,
    static_cluster,
)
from peltast.proxy.xds.module import KEYS, PROGRAM, REVOCATIONS, filter_config

TRUST_DOMAIN = TrustDomain("cluster.local")
CLIENT = "spiffe://cluster.local/ns/bench/sa/client"
SERVER = "spiffe://cluster.local/ns/bench/sa/server"
CONTROL = "spiffe://cluster.local/peltast/control"

_CLIENT_ADDRESS, _BACKEND_ADDRESS, _BACKEND_PORT = "127.0.30.1", "127.0.30.2", 8080
_SPOOL_BYTES = 8 << 30

_MESH = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: bench}}
spec: {{address: {client}, serviceAccount: client}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: server, namespace: bench, labels: {{app: server}}}}
spec: {{address: {server}, serviceAccount: server}}
---
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: bench}}
spec: {{selector: {{app: server}}, ports: [{{port: 8443, targetPort: 8080}}]}}
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {{name: client, namespace: bench}}
spec: {{workload: client, command: [none], egress: [{{service: server, port: {egress}}}]}}
"""


@dataclass(frozen=True)
class Variant:
    """An inbound sidecar: ours with `policies`, or (without) the same Envoy with `filters` of its own."""

    policies: str | None = None
    filters: Sequence[HttpFilter] = ()
    clusters: Sequence[Cluster] = ()


@dataclass(frozen=True)
class Sidecar:
    """An inbound sidecar that runs, and where requests to it go in: at a client's sidecar."""

    pid: int
    url: str
    spool: Path

    @contextlib.contextmanager
    def shipped(self) -> Iterator[None]:
        """Takes records for acknowledged as often as an agent ships them, while the context lasts."""
        done = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            acknowledging = pool.submit(self._acknowledge_until, done)
            try:
                yield
            finally:
                done.set()
                acknowledging.result()

    def _acknowledge_until(self, done: threading.Event) -> None:
        usage = SpoolUsage(self.spool, _SPOOL_BYTES)
        readers: dict[Path, SpoolReader] = {}
        while not done.wait(POLL_SECONDS):
            for folder in spool_folders(self.spool):
                reader = readers.setdefault(folder, SpoolReader(folder))
                while found := scan_frames(reader.read()):
                    usage.acknowledge(reader.acknowledge(found[1]))


@dataclass
class Bench:
    """A folder with an authority of its own, and an application. Leaving it ends what was started."""

    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __enter__(self) -> Bench:
        now = datetime.now(UTC)
        self._authority: Authority = make_intermediate(make_root(TRUST_DOMAIN, now), TRUST_DOMAIN, now)
        self._modules = self.folder / "modules"
        self._modules.mkdir()
        self._module = install_module(self._modules)
        self._processes = contextlib.ExitStack()
        self._processes.enter_context(self._running("backend", [_backend()], []))
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    @contextlib.contextmanager
    def sidecar(self, variant: Variant) -> Iterator[Sidecar]:
        """The sidecar of `variant` behind a client's sidecar, while the context lasts."""
        number = next(self._numbers)
        name, egress = f"sidecar-{number}", 15100 + number
        mesh = _MESH.format(client=_CLIENT_ADDRESS, server=f"127.0.31.{number}", egress=egress)
        files = {"mesh.yaml": mesh.encode(), "policies.yaml": (variant.policies or "").encode()}
        revision = compile_revision(load(files, TRUST_DOMAIN.name, 1))
        application = static_cluster(
            application_cluster_name(revision.snapshot.workloads["bench/server"].ports[0]),
            [socket_address(_BACKEND_ADDRESS, _BACKEND_PORT)],
            "http",
        )
        clusters = [application, *map(copy.deepcopy, variant.clusters)]
        client = revision.snapshot.workloads["bench/client"]
        outbound = outbound_listener(client, client.routes[0], self._module)
        outbound.filter_chains[0].filters[0].typed_config.CopyFrom(
            _repack(outbound.filter_chains[0].filters[0].typed_config, _without_access_log)
        )
        with (
            self._running(name, [self._inbound(revision, variant)], clusters, svid=SERVER) as pid,
            self._running(f"client-{number}", [outbound], [outbound_cluster(client.routes[0])], svid=CLIENT),
        ):
            sidecar = Sidecar(pid, f"http://{_CLIENT_ADDRESS}:{egress}", self.folder / name / "spool")
            with sidecar.shipped():
                yield sidecar

    def _inbound(self, revision: Revision, variant: Variant) -> Listener:
        workload = revision.snapshot.workloads["bench/server"]
        listener = inbound_listener(workload, workload.ports[0], self._module)
        chain = listener.filter_chains[0]
        documents = {
            PROGRAM: revision.programs[workload.full_name],
            KEYS: revision.keys[workload.full_name],
            REVOCATIONS: revision.revocations,
        }

        def with_programs(manager: HttpConnectionManager) -> None:
            for http_filter in manager.http_filters:
                if http_filter.HasField("config_discovery"):
                    config = filter_config(self._module, http_filter.name, documents[http_filter.name])
                    http_filter.typed_config.CopyFrom(config.typed_config)

        def without_us(manager: HttpConnectionManager) -> None:
            _without_access_log(manager)
            router = manager.http_filters[-1]
            del manager.http_filters[:]
            manager.http_filters.extend([*variant.filters, router])

        if variant.policies is None:
            del listener.access_log[:]
            del chain.filters[0]
        last = chain.filters[-1]
        last.typed_config.CopyFrom(_repack(last.typed_config, with_programs if variant.policies else without_us))
        return listener

    def check_service(self, policies: str) -> RunningCheckService:
        """A check service that decides requests to the server by `policies`."""
        mesh = _MESH.format(client=_CLIENT_ADDRESS, server="127.0.31.250", egress=15001)
        files = {"mesh.yaml": mesh.encode(), "policies.yaml": policies.encode()}
        revision = compile_revision(load(files, TRUST_DOMAIN.name, 1))
        return RunningCheckService(revision, self._svid(CONTROL), pem(self._authority.chain[-1]))

    def _svid(self, name: str) -> Svid:
        key, csr = new_key_and_csr()
        return Svid(key, issue(self._authority, csr, SpiffeId(name), datetime.now(UTC))[:-1])

    @contextlib.contextmanager
    def _running(
        self, name: str, listeners: list[Listener], clusters: list[Cluster], svid: str | None = None
    ) -> Iterator[int]:
        """An Envoy with one worker that takes connections; gives its process id."""
        folder = self.folder / name
        folder.mkdir()
        if svid is not None:
            named = secrets(self._svid(svid), {TRUST_DOMAIN.name: pem(self._authority.chain[-1])})
            for transport in _transports(listeners, clusters):
                transport.CopyFrom(_repack(transport, lambda tls: _inline(tls, named)))
        config = folder / "bootstrap.json"
        config.write_text(json.dumps(_bootstrap(folder / "admin.sock", listeners, clusters)))
        environment = {
            **os.environ,
            "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(self._modules),
            "PELTAST_SPOOL": str(folder / "spool"),
            "PELTAST_SPOOL_BYTES": str(_SPOOL_BYTES),
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


def _transports(listeners: list[Listener], clusters: list[Cluster]) -> list[Any]:
    chains = [chain for listener in listeners for chain in listener.filter_chains]
    return [each.transport_socket.typed_config for each in [*chains, *clusters] if each.HasField("transport_socket")]


def _repack(packed: Any, change: Any) -> Any:
    """`packed` (an Any), with its message changed."""
    for kind in (HttpConnectionManager, DownstreamTlsContext, UpstreamTlsContext):
        message = kind()
        if packed.Unpack(message):
            change(message)
            repacked = type(packed)()
            repacked.Pack(message)
            return repacked
    raise TypeError(packed.type_url)


def _without_access_log(manager: HttpConnectionManager) -> None:
    del manager.access_log[:]


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


def _bootstrap(admin: Path, listeners: list[Listener], clusters: list[Cluster]) -> dict[str, Any]:
    def plain(message: Any) -> Any:
        return MessageToDict(message, preserving_proto_field_name=True)

    return {
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "static_resources": {"listeners": [*map(plain, listeners)], "clusters": [*map(plain, clusters)]},
    }


def _backend() -> Listener:
    """An application that answers at once."""
    manager = HttpConnectionManager(stat_prefix="backend")
    host = manager.route_config.virtual_hosts.add(name="all", domains=["*"])
    route = host.routes.add()
    route.match.prefix = "/"
    route.direct_response.status = 200
    route.direct_response.body.inline_string = "hello"
    router = manager.http_filters.add(name="envoy.filters.http.router")
    router.typed_config.type_url = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    listener = Listener(name="backend", address=socket_address(_BACKEND_ADDRESS, _BACKEND_PORT))
    network_filter = listener.filter_chains.add().filters.add(name="envoy.filters.network.http_connection_manager")
    network_filter.typed_config.Pack(manager)
    return listener
