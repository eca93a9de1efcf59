from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from peltast.authz.revision import Revision, compile_revision
from peltast.policies.snapshot import load
from peltast.proxy.xds.compile import Surroundings, compile_resources
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, SECRET, Resource, Resources, resource

_STAT_FIELD = {CLUSTER: "alt_stat_name", LISTENER: "stat_prefix"}
_MESSAGES = {CLUSTER: Cluster, LISTENER: Listener, EXTENSION_CONFIG: TypedExtensionConfig, SECRET: Secret}

MakeResource = Callable[..., Resource]


@pytest.fixture
def make_resource() -> MakeResource:
    """A real resource of a type; another `content` makes another version of it."""

    def make(name: str, content: str = "", type_url: str = CLUSTER) -> Resource:
        message = _MESSAGES[type_url](name=name)
        if content:
            setattr(message, _STAT_FIELD[type_url], content)
        return resource(name, message)

    return make


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """An executable shell script of the given lines."""

    def write(lines: str) -> Path:
        file = tmp_path / "script"
        file.write_text(f"#!/bin/sh\n{lines}\n")
        file.chmod(0o700)
        return file

    return write


MESH = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: storefront, namespace: bookshop}
spec: {address: 127.0.10.1, labels: {app: storefront}, serviceAccount: storefront}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: ledger-1, namespace: bookshop}
spec: {address: 127.0.10.2, labels: {app: ledger, shard: first}, serviceAccount: ledger}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: ledger-2, namespace: bookshop}
spec: {address: 127.0.10.3, labels: {app: ledger}, serviceAccount: ledger-spare}
---
apiVersion: v1
kind: Service
metadata: {name: storefront, namespace: bookshop}
spec:
  selector: {app: storefront}
  ports: [{port: 8443, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: ledger, namespace: bookshop}
spec:
  selector: {app: ledger}
  ports: [{name: grpc, port: 9443, targetPort: 9090, appProtocol: grpc}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: database, namespace: bookshop}
spec: {address: 127.0.10.4, labels: {app: database}, serviceAccount: database}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reports, namespace: bookshop}
spec: {address: 127.0.10.5, labels: {app: reports}, serviceAccount: reports}
---
apiVersion: v1
kind: Service
metadata: {name: database, namespace: bookshop}
spec:
  selector: {app: database}
  ports: [{name: tcp, port: 15432, targetPort: 5432, appProtocol: tcp}]
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {name: storefront, namespace: bookshop}
spec:
  workload: storefront
  command: [python3, storefront.py]
  egress: [{service: ledger, port: 15001}]
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {name: reports, namespace: bookshop}
spec:
  workload: reports
  command: [python3, reports.py]
  egress: [{service: database, port: 15002}]
"""

SURROUNDINGS = Surroundings(
    "peltast_filter_0123", ("127.0.0.1", 15013), ("127.0.0.1", 15012), "spiffe://mesh.example/peltast/control"
)


@pytest.fixture(scope="session")
def surroundings() -> Surroundings:
    """What `compiled` is given beside the mesh."""
    return SURROUNDINGS


@pytest.fixture(scope="session")
def revision() -> Revision:
    """A small mesh: one workload that calls two others, which speak gRPC, and one that calls a database."""
    return compile_revision(load({"mesh.yaml": MESH.encode()}, "mesh.example", 1))


@pytest.fixture(scope="session")
def compiled(revision: Revision) -> Callable[..., Resources]:
    """The resources of one workload's sidecar, with more documents than the mesh if they are given."""

    def of(workload: str, module: str = SURROUNDINGS.module, more: str = "") -> Resources:
        surroundings = dataclasses.replace(SURROUNDINGS, module=module)
        files = {"mesh.yaml": MESH.encode(), "more.yaml": more.encode()}
        made = compile_revision(load(files, "mesh.example", 1)) if more else revision
        return compile_resources(made, made.snapshot.workloads[workload], surroundings)

    return of
