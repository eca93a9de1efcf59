"""RateLimitPolicies that all sidecars count together: two sidecars borrow of one limit, whose counters are in Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.http import Connection, Response
from support.receivers import free_port
from support.redis import needs_redis, redis_server
from support.running import ALLOW, CLIENT, EGRESS_PORT, MESH, RunningMesh, eventually

LIMIT = 300
CONNECTIONS = 8
EGRESS = (EGRESS_PORT, EGRESS_PORT + 1)
SECOND = "127.0.20.3"

SECOND_SERVER = f"""
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: second, namespace: shop}}
spec: {{address: {SECOND}, labels: {{app: second}}, serviceAccount: second}}
---
apiVersion: v1
kind: Service
metadata: {{name: second, namespace: shop}}
spec:
  selector: {{app: second}}
  ports: [{{port: 8443, targetPort: 8080}}]
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {{name: second, namespace: shop}}
spec:
  workload: second
  command: [python, "{Path(__file__).parents[1] / "support" / "echo.py"}"]
  environment: {{LISTEN: "{SECOND}:8080"}}
"""

LIMITS = f"""
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {{name: together, namespace: shop}}
spec:
  scope: global
  limits:
    - name: tenant
      by: ["request.headers[x-tenant]"]
      rules: [{{to: [{{operation: {{paths: [/open/counted]}}}}]}}]
      rates: [{{requests: {LIMIT}, per: 1d}}]
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {{name: lenient, namespace: shop}}
spec:
  scope: global
  onError: allow
  limits:
    - rules: [{{to: [{{operation: {{paths: [/open/lenient]}}}}]}}]
      rates: [{{requests: 1000, per: 1d}}]
"""

CHANGE = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: another, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/closed-@N@]}}]}]
"""


@pytest.fixture
def two_servers(folder: Path) -> Path:
    """A client, and two servers that it calls at two ports."""
    mesh = folder / "mesh.yaml"
    egress = f"egress: [{{service: server, port: {EGRESS_PORT}}}"
    assert egress in MESH
    text = mesh.read_text().replace(egress, f"{egress}, {{service: second, port: {EGRESS[1]}}}")
    mesh.write_text(text + SECOND_SERVER)
    allowed = ALLOW.replace("  selector: {matchLabels: {app: server}}\n", "")
    assert allowed != ALLOW
    (folder / "policies.yaml").write_text(allowed + LIMITS)
    return folder


async def ask_both(path: str, number: int, tenant: str) -> Counter[int]:
    """The statuses of as many requests, half to either server, over several connections at once."""
    places = iter(range(number))

    async def ask(port: int) -> list[Response]:
        connection = await Connection.open(CLIENT, port)
        try:
            return [await connection.ask("GET", path, {"x-tenant": tenant}) for _ in places]
        finally:
            connection.close()

    asked = await asyncio.gather(*(ask(EGRESS[index % 2]) for index in range(CONNECTIONS)))
    return Counter(response.status for responses in asked for response in responses)


@needs_redis
async def test_two_sidecars_admit_together_what_the_limit_says(
    two_servers: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    with ExitStack() as redis:
        redis.enter_context(redis_server(tmp_path, port=port))
        async with RunningMesh(two_servers, state, "--redis", f"redis://127.0.0.1:{port}/") as mesh:
            first = await ask_both("/open/counted", 4 * LIMIT, "a")
            assert set(first) == {200, 429}
            with capsys.disabled():
                print(f"\nof {4 * LIMIT} requests to two sidecars with a limit of {LIMIT}: {first[200]} admitted")
            assert first[200] <= LIMIT, "no lease was out when it began"
            assert first[200] > LIMIT / 2
            admitted = first[200]

            async def all_came_back() -> bool:
                nonlocal admitted
                admitted += (await ask_both("/open/counted", 40, "a"))[200]
                return admitted >= LIMIT

            await eventually(all_came_back, "what one sidecar has borrowed and not used is used by the other")
            assert admitted <= LIMIT + 1, "a token came back by itself at most"
            assert await ask_both("/open/counted", 20, "b") == Counter({200: 20}), "another key has its own tokens"

            policies = two_servers / "policies.yaml"
            text = policies.read_text()
            for number in range(5):
                policies.write_text(text + CHANGE.replace("@N@", str(number)))
                assert await ask_both("/open/counted", 24, "e") == Counter({200: 24}), "a change refuses nobody"

            redis.close()
            lenient = await ask_both("/open/lenient", 20, "a")
            assert lenient == Counter({200: 20})

            async def is_denied() -> bool:
                return await ask_both("/open/counted", 8, "c") == Counter({503: 8})

            await eventually(is_denied, "without Redis nobody can count")
            database = await mesh.connect()

            async def recorded() -> bool:
                rows = await database.fetch(
                    "SELECT DISTINCT reason, decided_by, detail LIKE '%Redis%' FROM records "
                    "WHERE kind = 'decision' AND (reason = 'rate_limit_unavailable' OR decided_by = 'failed-open')"
                )
                found = {tuple(row) for row in rows}
                denied, opened = ("rate_limit_unavailable", "engine", True), ("allow_rule", "failed-open", True)
                return {denied, opened} <= found

            await eventually(recorded, "what could not be counted is on record as such")
            await database.close()
            redis.enter_context(redis_server(tmp_path, port=port))

            async def is_admitted() -> bool:
                return (await ask_both("/open/counted", 2, "d"))[200] == 2

            await eventually(is_admitted, "Redis is back")
