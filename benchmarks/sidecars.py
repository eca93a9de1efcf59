"""Sidecars to measure: made by the compiler that makes real ones, with what they would be sent put in its place."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from check_service import RunningCheckService
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
)
from support.envoys import SPOOL_BYTES, TRUST_DOMAIN, Envoys, backend, manager_of, repack

from peltast.audit.shipper import POLL_SECONDS
from peltast.audit.spool import SpoolReader, spool_folders
from peltast.authz._engine import SpoolUsage, scan_frames
from peltast.authz.revision import Revision, compile_revision
from peltast.identity.certificates import pem
from peltast.identity.rpc import server_credentials
from peltast.policies.kinds.mesh import Normalization
from peltast.policies.snapshot import Snapshot, load
from peltast.proxy.xds.compile import (
    application_cluster_name,
    inbound_listener,
    outbound_cluster,
    outbound_listener,
    socket_address,
    static_cluster,
)
from peltast.proxy.xds.module import KEYS, PROGRAM, REVOCATIONS, filter_config

CLIENT = "spiffe://cluster.local/ns/bench/sa/client"
SERVER = "spiffe://cluster.local/ns/bench/sa/server"
CONTROL = "spiffe://cluster.local/peltast/control"

_CLIENT_ADDRESS, _BACKEND_ADDRESS, _BACKEND_PORT = "127.0.30.1", "127.0.30.2", 8080

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


_DROPS = """
---
apiVersion: peltast.dev/v1
kind: AuditPolicy
metadata: {name: drops, namespace: bench}
spec: {onSpoolFull: drop}
"""


@dataclass(frozen=True)
class Variant:
    """An inbound sidecar: ours with `policies`, or (without) the same Envoy with `filters` of its own.

    Without `records`, it has no access logger, and a spool without room whose records may be dropped.
    """

    policies: str | None = None
    records: bool = True
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
        usage = SpoolUsage(self.spool, SPOOL_BYTES)
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
        self._envoys = Envoys(self.folder)
        self._module = self._envoys.module
        self._processes = contextlib.ExitStack()
        application = backend(_BACKEND_ADDRESS, [_BACKEND_PORT])
        self._processes.enter_context(self._envoys.running("backend", application, []))
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.close()

    @contextlib.contextmanager
    def sidecar(self, variant: Variant) -> Iterator[Sidecar]:
        """The sidecar of `variant` behind a client's sidecar, while the context lasts."""
        number = next(self._numbers)
        name, egress = f"sidecar-{number}", 15100 + number
        mesh = _MESH.format(client=_CLIENT_ADDRESS, server=f"127.0.31.{number}", egress=egress)
        files = {"mesh.yaml": mesh.encode(), "policies.yaml": _policies(variant).encode()}
        revision = compile_revision(load(files, TRUST_DOMAIN.name, 1))
        application = static_cluster(
            application_cluster_name(revision.snapshot.workloads["bench/server"].ports[0]),
            [socket_address(_BACKEND_ADDRESS, _BACKEND_PORT)],
            "http",
        )
        clusters = [application, *map(copy.deepcopy, variant.clusters)]
        client = revision.snapshot.workloads["bench/client"]
        outbound = outbound_listener(client, client.routes[0], self._module, Normalization.MERGE_SLASHES)
        repack(manager_of(outbound), _without_access_log)
        spool_bytes = SPOOL_BYTES if variant.records else 0
        with (
            self._envoys.running(name, [self._inbound(revision, variant)], clusters, SERVER, spool_bytes) as pid,
            self._envoys.running(f"client-{number}", [outbound], [outbound_cluster(client.routes[0])], svid=CLIENT),
        ):
            sidecar = Sidecar(pid, f"http://{_CLIENT_ADDRESS}:{egress}", self.folder / name / "spool")
            with sidecar.shipped():
                yield sidecar

    def _inbound(self, revision: Revision, variant: Variant) -> Listener:
        workload = revision.snapshot.workloads["bench/server"]
        listener = inbound_listener(workload, workload.ports[0], self._module, Normalization.MERGE_SLASHES)
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
            router = manager.http_filters[-1]
            del manager.http_filters[:]
            manager.http_filters.extend([*variant.filters, router])

        if variant.policies is None:
            del chain.filters[0]
        if variant.policies is None or not variant.records:
            del listener.access_log[:]
            repack(manager_of(listener), _without_access_log)
        repack(manager_of(listener), with_programs if variant.policies else without_us)
        return listener

    def snapshot(self, policies: str) -> Snapshot:
        """The mesh with `policies`, as a service beside the sidecars sees it."""
        mesh = _MESH.format(client=_CLIENT_ADDRESS, server="127.0.31.250", egress=15001)
        return load({"mesh.yaml": mesh.encode(), "policies.yaml": policies.encode()}, TRUST_DOMAIN.name, 1)

    def control_credentials(self) -> grpc.ServerCredentials:
        """With which a part of the control plane serves."""
        svid, roots = self._envoys.svid(CONTROL), pem(self._envoys.authority.chain[-1])
        return server_credentials(lambda: (svid.key_pem, svid.chain_pem, roots), require_client=True)

    def check_service(self, policies: str) -> RunningCheckService:
        """A check service that decides requests to the server by `policies`."""
        revision = compile_revision(self.snapshot(policies))
        return RunningCheckService(revision, self._envoys.svid(CONTROL), pem(self._envoys.authority.chain[-1]))


def _policies(variant: Variant) -> str:
    return (variant.policies or "") + ("" if variant.records else _DROPS)


def _without_access_log(manager: HttpConnectionManager) -> None:
    del manager.access_log[:]
