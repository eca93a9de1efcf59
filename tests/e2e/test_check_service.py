"""The check service: over gRPC for any Envoy, and as the sidecar's own callout."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.rpc.code_pb2 import OK, PERMISSION_DENIED
from support.check_service import CLIENT_ID, asks, grpc_channel, question
from support.http import Response, ask
from support.running import ALLOW, BASE_PORT, CLIENT, EGRESS_PORT, RunningMesh, eventually

ASKS = asks("/open/asked/*", 'input.parsed_path[2] == "ada"')

TRIED = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried, namespace: shop, annotations: {istio.io/dry-run: "true"}}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/open/asked/ada]}}]}]
"""

CLOSED = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/open/asked/closed]}}]}]
"""


@pytest.fixture
def asking(folder: Path) -> Path:
    """A mesh whose server's policies ask the check service."""
    (folder / "policies.yaml").write_text(ALLOW + ASKS + TRIED)
    return folder


def send(pids: list[int], number: signal.Signals) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, number)


async def get(path: str, **headers: str) -> Response:
    return await ask(CLIENT, EGRESS_PORT, "GET", path, headers)


async def test_answers_are_carried_out_and_cached(asking: Path, state: Path) -> None:
    async with RunningMesh(asking, state, "--concurrency", "1") as mesh:  # each worker has a cache of its own
        allowed = await get("/open/asked/ada", **{"x-secret": "s"})
        assert allowed.status == 200
        assert allowed.json()["headers"]["x-tier"] == "gold"
        assert "x-secret" not in allowed.json()["headers"]
        assert allowed.headers["x-answered"] == "yes"
        again = await get("/open/asked/ada", **{"x-secret": "s"})
        assert (again.status, again.headers["x-answered"]) == (200, "yes")
        denied = await get("/open/asked/grace")
        assert (denied.status, denied.body) == (402, b"pay")
        database = await mesh.connect()

        async def told() -> bool:
            rows = await database.fetch(
                "SELECT decided_by, dry_run_deny, dry_run_deny_policy FROM requests ORDER BY time"
            )
            tried = ("deny", "shop/tried")
            return [tuple(row) for row in rows] == [("check", *tried), ("cache", *tried), ("check", "allow", None)]

        await eventually(told, "the records say who decided, and what the policy on trial would have")
        await database.close()

        async def counted() -> bool:
            metrics = (await ask("127.0.0.1", BASE_PORT + 5, "GET", "/metrics")).body.decode()
            effects = ("allow", "deny")
            return all(f'decisions_total{{effect="{each}",source="engine"}} 1.0' in metrics for each in effects)

        await eventually(counted, "Prometheus sees what both check workers decided")


async def test_without_the_check_service_questions_are_denied_and_known_answers_stand(
    asking: Path, state: Path
) -> None:
    async with RunningMesh(asking, state, "--concurrency", "1") as mesh:  # each worker has a cache of its own
        assert (await get("/open/asked/ada")).status == 200
        check_service = mesh.pids_of("peltast.cli.check_worker")
        send(check_service, signal.SIGSTOP)
        try:
            assert (await get("/open/asked/other")).status == 403
            assert (await get("/open/asked/ada")).status == 200
            assert (await get("/open")).status == 200
        finally:
            send(check_service, signal.SIGCONT)
        database = await mesh.connect()

        async def reasons() -> bool:
            rows = await database.fetch("SELECT reason, dry_run_deny FROM requests WHERE effect = 'deny'")
            return [tuple(row) for row in rows] == [("check_unreachable", "allow")]

        await eventually(reasons, "the record says why")
        await database.close()
        assert (await get("/open/asked/other")).status == 402


async def test_a_policy_that_fails_open_opens_for_itself_only(asking: Path, state: Path) -> None:
    (asking / "policies.yaml").write_text(ALLOW + ASKS.replace("tier: check", "tier: check\n  onError: allow") + CLOSED)
    async with RunningMesh(asking, state) as mesh:
        check_service = mesh.pids_of("peltast.cli.check_worker")
        send(check_service, signal.SIGSTOP)
        try:
            assert (await get("/open/asked/ada")).status == 200
            assert (await get("/open/asked/closed")).status == 403, "DENY holds"
            assert (await ask(CLIENT, EGRESS_PORT, "POST", "/open/asked/ada")).status == 403, "no ALLOW matches"
        finally:
            send(check_service, signal.SIGCONT)
        database = await mesh.connect()

        async def on_record() -> bool:
            rows = await database.fetch("SELECT effect, reason, decided_by, method, path FROM requests ORDER BY time")
            decided = [tuple(row)[:3] for row in rows]
            return decided == [
                ("allow", "allow_rule", "failed-open"),
                ("deny", "deny_rule", "engine"),
                ("deny", "no_allow_rule", "engine"),
            ]

        await eventually(on_record, "what failed open is on record as such")
        await database.close()


async def test_an_envoy_asks_over_grpc_about_requests_to_itself_only(asking: Path, state: Path) -> None:
    async with RunningMesh(asking, state), grpc_channel(state) as channel:
        check = channel.unary_unary(
            "/envoy.service.auth.v3.Authorization/Check",
            request_serializer=CheckRequest.SerializeToString,
            response_deserializer=CheckResponse.FromString,
        )
        allowed = await check(question("/open/asked/ada"))
        assert allowed.status.code == OK
        set_headers = {option.header.key: option.header.value for option in allowed.ok_response.headers}
        assert set_headers == {"x-tier": "gold"}
        denied = await check(question("/shut"))
        assert denied.status.code == PERMISSION_DENIED
        assert denied.denied_response.status.code == 403
        assert denied.dynamic_metadata["peltast.dev"]["reason"] == "no_allow_rule"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(question("/open", CLIENT_ID))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
