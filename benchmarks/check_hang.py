"""What others notice of a policy of the check tier that hangs, and when its own request is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass

from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from sidecar import ALLOW, REGO

from peltast.authz.check.documents import check_revision
from peltast.authz.check.front import CheckFront
from peltast.authz.check.pool import EvaluatorPool
from peltast.authz.revision import compile_revision
from peltast.policies.snapshot import load

MOST_EXTRA_MS = 20
"""What others may wait longer."""

_TIMEOUT_SECONDS = 1.0
_SERVER = "spiffe://cluster.local/ns/bench/sa/server"
_MESH = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: server, namespace: bench, labels: {app: server}}
spec: {address: 127.0.31.250, serviceAccount: server}
---
"""


@dataclass(frozen=True)
class Hang:
    """Times in milliseconds: those of others are of the slowest of a hundred."""

    usual_ms: float
    others_ms: float
    late_ms: float

    @property
    def holds(self) -> bool:
        """Whether others notice no more than is claimed."""
        return self.others_ms - self.usual_ms <= MOST_EXTRA_MS


async def measure_hang() -> Hang:
    """Stops one of two evaluators, as if it hung in a built-in, while it has a question."""
    policies = ALLOW + REGO.replace("  entrypoint", f"  tier: check\n  timeout: {_TIMEOUT_SECONDS:g}s\n  entrypoint")
    revision = compile_revision(load({"mesh.yaml": (_MESH + policies).encode()}, "cluster.local", 1))
    pool = EvaluatorPool()
    front = CheckFront(pool)
    try:
        await front.take(check_revision(revision).SerializeToString())
        usual = [await _seconds(front) for _ in range(1000)]
        os.kill(pool.pids[0], signal.SIGSTOP)
        asked = [asyncio.create_task(_seconds(front)) for _ in range(2)]  # one of them is asked of the one that hangs
        await asyncio.sleep(0)
        others = []
        while not all(task.done() for task in asked):
            others.append(await _seconds(front))
        late = max(task.result() for task in asked) - _TIMEOUT_SECONDS
        return Hang(_p99(usual) * 1000, _p99(others) * 1000, late * 1000)
    finally:
        await pool.stop()


async def _seconds(front: CheckFront) -> float:
    http = AttributeContext.HttpRequest(method="GET", host="h", path="/open/door", headers={"x-user": "grace"})
    attributes = AttributeContext(
        destination=AttributeContext.Peer(principal=_SERVER), request=AttributeContext.Request(http=http)
    )
    began = time.monotonic()
    checked = front.check(CheckRequest(attributes=attributes).SerializeToString(), _SERVER)
    assert not isinstance(checked, CheckResponse), "nothing of it is decided at once"
    await checked
    return time.monotonic() - began


def _p99(took: list[float]) -> float:
    return sorted(took)[len(took) * 99 // 100]
