from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from peltast.authz._engine import Decider, Decision, KeySets, Program, Request, Revocations
from peltast.authz.revision import Revision, compile_revision
from peltast.authz.revocations import NO_REVOCATIONS
from peltast.policies.snapshot import load

NOW_MS = 1_800_000_000_000

WORKLOADS = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: catalog, namespace: shop}
spec: {address: 127.0.0.2, labels: {app: catalog, tier: back}, serviceAccount: catalog}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: front}
spec: {address: 127.0.0.3, labels: {app: web}, serviceAccount: web}
---
apiVersion: v1
kind: Service
metadata: {name: catalog, namespace: shop}
spec: {selector: {app: catalog}, ports: [{port: 80, targetPort: 8080}, {port: 90, targetPort: 9090}]}
"""


class Mesh:
    """A workload's real program and key sets with a decider of its own."""

    def __init__(self, revision: Revision, workload: str) -> None:
        self.revision = revision
        self.program = Program.load(revision.programs[workload])
        self.keys = KeySets.load(revision.keys[workload])
        self.decider = Decider()
        self.revocations = Revocations.load(NO_REVOCATIONS)

    def decide(self, *, now_ms: int = NOW_MS, **given: Any) -> Decision:
        request: dict[str, Any] = {
            "method": "GET",
            "host": "catalog.shop",
            "path": "/",
            "scheme": "https",
            "protocol": "HTTP/1.1",
            "headers": [],
            "source_principal": "spiffe://cluster.local/ns/front/sa/web",
            "source_ip": "10.0.0.1",
            "source_port": 40000,
            "destination_ip": "127.0.0.2",
            "destination_port": 80,
        }
        return self.decider.decide(self.program, self.keys, self.revocations, Request(**{**request, **given}), now_ms)


def policy_yaml(
    spec: Any, kind: str = "AuthorizationPolicy", name: str = "p", namespace: str = "shop", *, dry_run: bool = False
) -> str:
    group = "peltast.dev/v1" if kind in ("RegoPolicy", "MeshConfig") else "security.istio.io/v1"
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if dry_run:
        metadata["annotations"] = {"istio.io/dry-run": "true"}
    return yaml.safe_dump({"apiVersion": group, "kind": kind, "metadata": metadata, "spec": spec})


def make_mesh(*documents: str, workload: str = "shop/catalog", files: dict[str, bytes] | None = None) -> Mesh:
    text = "\n---\n".join([WORKLOADS, *documents])
    snapshot = load({"mesh.yaml": text.encode(), **(files or {})}, "cluster.local", 1)
    return Mesh(compile_revision(snapshot), workload)


@pytest.fixture(scope="session")
def mesh() -> Callable[..., Mesh]:
    """Makes a Mesh of YAML documents beside `WORKLOADS`."""
    return make_mesh


@pytest.fixture(scope="session")
def policy() -> Callable[..., str]:
    """Writes one policy as YAML."""
    return policy_yaml


@pytest.fixture(scope="session")
def workloads() -> str:
    """The YAML of the workloads that every Mesh has."""
    return WORKLOADS


@pytest.fixture(scope="session")
def now() -> int:
    """The time of requests, in seconds."""
    return NOW_MS // 1000
