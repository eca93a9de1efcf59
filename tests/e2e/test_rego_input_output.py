"""What Rego policies read of bodies, and what they answer beside yes and no, in both tiers through real sidecars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_health.v1 import health_pb2
from support.http import Connection, Response, ask
from support.running import CLIENT, EGRESS_PORT, RunningMesh, eventually

POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: CUSTOM
  provider: {name: orders}
  rules: [{to: [{operation: {paths: ["/orders*", "/grpc.health.v1.Health/*"]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks-part, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: CUSTOM
  provider: {name: part}
  rules: [{to: [{operation: {paths: [/part]}}]}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: orders, namespace: shop}
spec:
  entrypoint: data.orders.decision
  tier: @TIER@
  onError: allow
  includeRequestBodyInCheck: {maxRequestBytes: 1000}
  protoDescriptor: health.pb
  module: |
    # METADATA
    # title: Orders of gold customers
    package orders
    import rego.v1
    default decision := {"allowed": false, "http_status": 402, "body": "gold only"}
    decision := {
      "allowed": true,
      "headers": {"x-tier": ["gold", "premium"]},
      "query_parameters_to_set": {"tier": "gold"},
      "query_parameters_to_remove": ["debug"],
      "response_headers_to_add": {"x-answered": "yes"},
    } if {
      print("asked for", tier, input.attributes.request.http.headers.authorization)
      tier == "gold"
    }
    tier := input.parsed_body.customer.tier
    tier := input.parsed_body.tier[0]
    tier := input.parsed_body.service
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: part, namespace: shop}
spec:
  entrypoint: data.part.decision
  tier: @TIER@
  includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}
  module: |
    package part
    import rego.v1
    decision := {"allowed": input.truncated_body, "headers": {"x-read": input.attributes.request.http.body}}
"""

GOLD, IRON = b'{"customer": {"tier": "gold"}}', b'{"customer": {"tier": "iron"}}'
FORM = b"tier=gold&other=1"
MULTIPART = b'--b\r\ncontent-disposition: form-data; name="tier"\r\n\r\ngold\r\n--b--\r\n'


def framed(service: str) -> bytes:
    message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


async def post(path: str, body: bytes, content_type: str = "application/json", **headers: str) -> Response:
    return await ask(CLIENT, EGRESS_PORT, "POST", path, {"content-type": content_type, **headers}, body)


@pytest.mark.parametrize("tier", ["sidecar", "check"])
async def test_bodies_are_read_and_answers_are_carried_out(folder: Path, state: Path, tier: str) -> None:
    (folder / "policies.yaml").write_text(POLICIES.replace("@TIER@", tier))
    descriptors = FileDescriptorSet()
    health_pb2.DESCRIPTOR.CopyToProto(descriptors.file.add())
    (folder / "health.pb").write_bytes(descriptors.SerializeToString())
    async with RunningMesh(folder, state) as mesh:
        for body, content_type, status in [
            (GOLD, "application/json", 200),
            (IRON, "application/json", 402),
            (FORM, "application/x-www-form-urlencoded", 200),
            (MULTIPART, "multipart/form-data; boundary=b", 200),
            (b"gold", "text/plain", 402),
            (b"", "application/json", 402),
            (b"{", "application/json", 400),
            (b'{"customer": {"tier": "iron"}, "customer": {"tier": "gold"}}', "application/json", 400),
            (GOLD.ljust(1000), "application/json", 200),
            (GOLD.ljust(1001), "application/json", 413),
        ]:
            answer = await post("/orders?a=1&debug=1&%64ebug=2", body, content_type, authorization="Bearer secret-0123")
            assert answer.status == status, (body, content_type, answer.body)
            if status == 200:
                arrived(answer, body)
        assert (await call("gold")).status == 200
        assert (await call("iron")).headers["grpc-status"] == "2", "as gRPC has it for 402"
        await check_pieces()
        part = await post("/part", b"0123456789abc", "text/plain")
        assert (part.status, part.json()["headers"]["x-read"], part.json()["body"]) == (
            200,
            "0123456789",
            "0123456789abc",
        )
        assert (await post("/part", b"0123456789", "text/plain")).status == 403
        assert (await post("/open", b"{", "application/json")).status == 200, "no policy reads this one"
        await check_records(mesh)


def arrived(answer: Response, body: bytes) -> None:
    """The application got the whole body, and what the policy did to the rest."""
    seen = answer.json()
    assert (seen["path"], seen["headers"]["x-tier"]) == ("/orders?a=1&tier=gold", "gold,premium")
    assert seen["body"] == body.decode()
    assert answer.headers["x-answered"] == "yes"


async def call(service: str) -> Response:
    return await post("/grpc.health.v1.Health/Check", framed(service), "application/grpc")


async def check_pieces() -> None:
    """A body that comes in pieces is waited for."""
    connection = await Connection.open(CLIENT, EGRESS_PORT)
    for body, status in ((GOLD, 200), (IRON, 402), (b"x" * 5000, 413)):
        answer = await connection.ask_in_pieces("POST", "/orders?a=1", {"content-type": "application/json"}, body, 7)
        assert answer.status == status, body
    connection.close()


async def check_records(mesh: RunningMesh) -> None:
    database = await mesh.connect()

    async def found() -> Any:
        rows = await database.fetch("SELECT reason, prints, annotations FROM requests ORDER BY time")
        return rows if len(rows) >= 18 else None

    rows = await eventually(found, "all requests are on record")
    await database.close()
    prints = [row["prints"] for row in rows[:3]]
    place = "RegoPolicy shop/orders:13: asked for"
    assert prints == [f"{place} {tier} Bearer [redacted]" for tier in ("gold", "iron", "gold")]
    assert json.loads(rows[0]["annotations"]) == {"policy": "shop/orders", "title": "Orders of gold customers"}
    reasons = [row["reason"] for row in rows]
    assert reasons[6:10] == ["body_malformed", "body_malformed", "rego_allowed", "body_too_large"]
    assert rows[-1]["prints"] is None


async def test_what_is_printed_is_left_out_where_anything_is(folder: Path, state: Path) -> None:
    secretive = (
        "---\napiVersion: peltast.dev/v1\nkind: AuditPolicy\nmetadata: {name: secretive, namespace: shop}\n"
        "spec: {record: {query: redact}}\n"
    )
    module = POLICIES.replace("@TIER@", "sidecar").replace("  protoDescriptor: health.pb\n", "")
    (folder / "policies.yaml").write_text(module + secretive)
    async with RunningMesh(folder, state) as mesh:
        assert (await post("/orders", GOLD)).status == 200
        database = await mesh.connect()

        async def found() -> Any:
            return await database.fetch("SELECT prints, annotations, redacted FROM requests")

        [row] = await eventually(found, "the request is on record")
        await database.close()
        assert (row["prints"], "prints" in row["redacted"]) == (None, True)
        assert json.loads(row["annotations"])["title"] == "Orders of gold customers"
