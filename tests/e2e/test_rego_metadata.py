"""Dynamic metadata that a Rego policy answers is Envoy's own, where access logs and other filters look for it."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from support.envoys import Envoys, backend, manager_of, repack
from support.generated import ADDRESS, MESH, NAMESPACE, PORTS
from support.http import Connection
from support.inbound import WORKLOAD, Sidecar
from support.peer import context

from peltast.authz.revision import Revision, compile_revision
from peltast.policies.kinds.mesh import Normalization
from peltast.policies.snapshot import load
from peltast.proxy.xds.compile import application_cluster, inbound_listener

CALLER = "spiffe://cluster.local/ns/shop/sa/web"
POLICIES = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: asks, namespace: {NAMESPACE}}}
spec: {{action: CUSTOM, provider: {{name: tiers}}, rules: [{{}}]}}
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {{name: tiers, namespace: {NAMESPACE}}}
spec:
  entrypoint: data.tiers.decision
  module: |
    package tiers
    import rego.v1
    metadata := {{"tier": {{"name": "gold", "levels": [1, 2.5]}}, "path": input.parsed_path[0]}}
    decision := {{"allowed": input.parsed_path[0] != "shut", "dynamic_metadata": metadata}}
"""


def revision(policies: str) -> Revision:
    return compile_revision(load({"mesh.yaml": MESH.encode(), "p.yaml": policies.encode()}, "cluster.local", 1))


def show_metadata(manager: HttpConnectionManager) -> None:
    """Has Envoy itself say on each response what its metadata are."""
    namespace = "envoy.filters.http.ext_authz"
    host = manager.route_config.virtual_hosts[0]
    for name, path in (("x-tier", "tier"), ("x-path", "path")):
        option = host.response_headers_to_add.add()
        option.header.key, option.header.value = name, f"%DYNAMIC_METADATA({namespace}:{path})%"


def test_metadata_is_envoys_own_also_of_remembered_decisions(state: Path) -> None:
    envoys = Envoys(state)
    made = revision(POLICIES)
    workload = made.snapshot.workloads[WORKLOAD]
    sidecar = Sidecar(state / "ecds", envoys.module)
    sidecar.write(made)
    inbound = [inbound_listener(workload, port, envoys.module, Normalization.MERGE_SLASHES) for port in workload.ports]
    for listener in inbound:
        repack(manager_of(listener), sidecar.by_files)
        repack(manager_of(listener), show_metadata)
    clusters = [application_cluster(workload, port) for port in workload.ports]
    tls = context(state / "peer", envoys.svid(CALLER))
    with envoys.running("envoy", [*inbound, *backend(ADDRESS, list(PORTS))], clusters, svid=workload.principal):
        asyncio.run(ask_and_check(tls))


async def ask_and_check(tls: ssl.SSLContext) -> None:
    connection = await Connection.open(ADDRESS, PORTS[8080], tls)
    for _ in range(2):
        answer = await connection.ask("GET", "/open")
        assert (answer.status, answer.headers["x-path"]) == (200, "open")
        assert json.loads(answer.headers["x-tier"]) == {"name": "gold", "levels": [1, 2.5]}
    denied = await connection.ask("GET", "/shut")
    assert (denied.status, denied.headers["x-path"]) == (403, "shut")
    connection.close()
