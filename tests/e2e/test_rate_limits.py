"""RateLimitPolicies in a running mesh: what is one too many is answered by the sidecar, whichever worker has it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from support.http import Connection, Response
from support.running import ALLOW, CLIENT, EGRESS_PORT, RunningMesh, eventually

CONNECTIONS = 16

LIMITS = """
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {name: tenants, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  limits:
    - name: tenant
      by: ["request.headers[x-tenant]"]
      rules: [{to: [{operation: {paths: [/open/counted*]}}]}]
      rates: [{requests: 40, per: 1d}]
    - rules: [{to: [{operation: {paths: [/open/asked/*]}}]}]
      rates: [{requests: 3, per: 1d}]
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {name: tried, namespace: shop}
spec:
  dryRun: true
  limits:
    - rules: [{to: [{operation: {paths: [/open/tried]}}]}]
      rates: [{requests: 1, per: 1d}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: CUSTOM
  provider: {name: answers}
  rules: [{to: [{operation: {paths: ["/open/asked/*"]}}]}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: answers, namespace: shop}
spec: {entrypoint: data.answers.allow, tier: check, module: "package answers\\nallow := true"}
"""

OF_WHAT_IS_SENT = """
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {name: sent, namespace: shop}
spec:
  limits:
    - rules: [{to: [{operation: {paths: [/open/sent]}}]}]
      rates: [{requests: 2, per: 1d}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: reads, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: CUSTOM
  provider: {name: reads}
  rules: [{to: [{operation: {paths: [/open/sent]}}]}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: reads, namespace: shop}
spec:
  entrypoint: data.reads.allow
  module: |
    package reads
    allow if { print("read", input.parsed_body.a); input.parsed_body.a > 1 }
"""


async def ask_many(path: str, number: int, **headers: str) -> list[Response]:
    """As many requests, over connections to several workers at once."""
    connections = [await Connection.open(CLIENT, EGRESS_PORT) for _ in range(CONNECTIONS)]
    places = iter(range(number))

    async def ask(connection: Connection) -> list[Response]:
        return [await connection.ask("GET", path, headers) for _ in places]

    try:
        return [response for responses in await asyncio.gather(*map(ask, connections)) for response in responses]
    finally:
        for connection in connections:
            connection.close()


def statuses(responses: list[Response]) -> Counter[int]:
    return Counter(response.status for response in responses)


async def test_each_key_is_admitted_exactly_as_often_as_its_limit_says(folder: Path, state: Path) -> None:
    (folder / "policies.yaml").write_text(ALLOW + LIMITS)
    async with RunningMesh(folder, state, "--concurrency", "2") as mesh:
        some, others = await asyncio.gather(
            ask_many("/open/counted", 200, **{"x-tenant": "a"}), ask_many("/open/counted", 100, **{"x-tenant": "b"})
        )
        assert (statuses(some), statuses(others)) == (Counter({200: 40, 429: 160}), Counter({200: 40, 429: 60}))
        for response in some:
            assert response.headers["ratelimit-policy"] == '"tenant";q=40;w=86400'
        left = [int(each.headers["ratelimit"].split(";")[1].removeprefix("r=")) for each in some if each.status == 200]
        assert sorted(left) == list(range(40))
        refused = next(each for each in some if each.status == 429)
        assert refused.headers["content-type"] == "application/problem+json"
        assert (refused.json()["title"], refused.json()["status"]) == ("Too Many Requests", 429)
        assert 2000 < int(refused.headers["retry-after"]) <= 2160, "a token a 40th of a day"

        uncounted = await ask_many("/open/else", 60)
        assert statuses(uncounted) == Counter({200: 60})
        assert all("ratelimit-policy" not in each.headers for each in uncounted)

        asked = await ask_many("/open/asked/x", 10)
        assert statuses(asked) == Counter({200: 3, 429: 7}), "what the check service allows is counted, too"

        tried = await ask_many("/open/tried", 3)
        assert statuses(tried) == Counter({200: 3})

        database = await mesh.connect()

        async def recorded() -> bool:
            refused = await database.fetchrow(
                "SELECT policy, rule, effect, status, count(*) FROM records WHERE reason = 'rate_limited' AND rule = 0 "
                "AND kind = 'decision' GROUP BY 1, 2, 3, 4"
            )
            return refused is not None and tuple(refused) == ("shop/tenants", 0, "deny", 429, 220)

        async def recorded_as_tried() -> bool:
            rows = await database.fetch(
                "SELECT dry_run_deny, dry_run_deny_policy, dry_run_deny_rule, count(*) FROM records "
                "WHERE path = '/open/tried' AND kind = 'decision' GROUP BY 1, 2, 3 ORDER BY 1"
            )
            return [tuple(row) for row in rows] == [("allow", None, None, 1), ("deny", "shop/tried", 0, 2)]

        await eventually(recorded, "each refusal is on record")
        await eventually(recorded_as_tried, "what a policy on trial would have refused is on record")
        await database.close()

        policies = folder / "policies.yaml"
        policies.write_text(policies.read_text().replace("/open/counted*", "/open/counted/*"))

        async def passes() -> bool:
            return statuses(await ask_many("/open/counted", 1, **{"x-tenant": "a"})) == Counter({200: 1})

        await eventually(passes, "another rule is in force")
        again = await ask_many("/open/counted/", 5, **{"x-tenant": "a"})
        assert statuses(again) == Counter({429: 5}), "the buckets outlive the program"


async def test_a_request_whose_body_is_read_is_counted_if_that_allows_it(folder: Path, state: Path) -> None:
    (folder / "policies.yaml").write_text(ALLOW + OF_WHAT_IS_SENT)
    async with RunningMesh(folder, state) as mesh:
        connection = await Connection.open(CLIENT, EGRESS_PORT)
        headers = {"content-type": "application/json"}
        sent = [b'{"a": %d}' % number for number in (1, 2, 1, 3, 4)]
        responses = [await connection.ask("GET", "/open/sent", headers, body) for body in sent]
        connection.close()
        assert [response.status for response in responses] == [403, 200, 403, 200, 429]
        assert [response.json()["body"] for response in responses if response.status == 200] == ['{"a": 2}', '{"a": 3}']

        database = await mesh.connect()

        async def recorded() -> bool:
            row = await database.fetchrow("SELECT policy, prints FROM records WHERE reason = 'rate_limited'")
            return row is not None and tuple(row) == ("shop/sent", "RegoPolicy shop/reads:2: read 4")

        await eventually(recorded, "what the policy printed is on record though a limit refuses the request")
        await database.close()
