"""The check service of a mesh's folder, as the control plane runs it, and whoever asks it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from support.peer import svid_for
from support.running import BASE_PORT

from peltast.authz.revision import compile_revision
from peltast.cli.check_workers import CheckWorkers
from peltast.cli.settings import ControlSettings
from peltast.identity.acts import Report
from peltast.identity.rpc import channel_credentials, open_channel
from peltast.identity.svid import save_svid
from peltast.policies.snapshot import load
from peltast.policies.sources.folder import read_folder

CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/shop/sa/server"
CONTROL_ID = "spiffe://cluster.local/peltast/control"

GRPC_PORT, HTTP_PORT = BASE_PORT + 1, BASE_PORT + 3


def asks(paths: str, condition: str) -> str:
    """Policies by which the check tier decides about `paths`: it allows where `condition` holds."""
    return f"""
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: asks, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  action: CUSTOM
  provider: {{name: answers}}
  rules: [{{to: [{{operation: {{paths: ["{paths}"]}}}}]}}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {{name: answers, namespace: shop}}
spec:
  entrypoint: data.answers.decision
  tier: check
  module: |
    package answers
    default decision := {{"allowed": false, "http_status": 402, "body": "pay", "headers": {{"x-price": "1"}}}}
    decision := {{
      "allowed": true,
      "headers": {{"x-tier": "gold"}},
      "request_headers_to_remove": ["x-secret"],
      "response_headers_to_add": {{"x-answered": "yes"}},
    }} if {condition}
"""


@contextlib.asynccontextmanager
async def check_service(folder: Path, state: Path, report: Report, number: int = 2) -> AsyncIterator[CheckWorkers]:
    """The check service of the mesh in `folder`, with so many workers."""
    save_svid(state / "control", svid_for(state, CONTROL_ID))
    workers = CheckWorkers(ControlSettings(state, "cluster.local", BASE_PORT), number, report)
    workers.take(compile_revision(load(read_folder(folder), "cluster.local", 1)))
    try:
        await workers.ready()
        yield workers
    finally:
        await workers.stop()


def question(path: str, destination: str = SERVER_ID) -> CheckRequest:
    """What an Envoy asks about a GET of `path`."""
    http = AttributeContext.HttpRequest(method="GET", host="server", path=path, scheme="https", protocol="HTTP/1.1")
    attributes = AttributeContext(
        source=AttributeContext.Peer(principal=CLIENT_ID),
        destination=AttributeContext.Peer(principal=destination),
        request=AttributeContext.Request(http=http),
    )
    return CheckRequest(attributes=attributes)


@contextlib.asynccontextmanager
async def grpc_channel(state: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel with the server's SVID."""
    svid = svid_for(state, SERVER_ID)
    credentials = channel_credentials((state / "ca" / "root.pem").read_bytes(), svid.chain_pem, svid.key_pem)
    async with open_channel(f"127.0.0.1:{GRPC_PORT}", credentials) as channel:
        yield channel


def asking_raw(channel: grpc.aio.Channel) -> Callable[[bytes], grpc.aio.UnaryUnaryCall[bytes, bytes]]:
    """The method that is asked, bytes in and out."""
    return channel.unary_unary("/envoy.service.auth.v3.Authorization/Check")
