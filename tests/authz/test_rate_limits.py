"""RateLimitPolicies in the Python mount: counted as in a sidecar, by the time that is given."""

from __future__ import annotations

import pytest

from peltast.authz._engine import Decider, Decision, KeySets, Program, Request, Revocations
from peltast.authz.revision import compile_revision
from peltast.authz.revocations import NO_REVOCATIONS
from peltast.policies.snapshot import load

START = 1_700_000_000_000

POLICY = """
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {name: callers, namespace: shop}
spec:
  limits:
    - name: caller
      by: [source.principal]
      rules: [{to: [{operation: {paths: ["/counted/*"]}}]}]
      rates: [{requests: 3, per: 1m}]
"""


class Asked:
    def __init__(self, workloads: str, *, counts: bool) -> None:
        revision = compile_revision(load({"w.yaml": (workloads + POLICY).encode()}, "cluster.local", 1))
        self.program = Program.load(revision.programs["shop/catalog"])
        self.keys = KeySets.load(revision.keys["shop/catalog"])
        self.decider = Decider(counts=counts)

    def at(self, seconds: int, account: str = "a", path: str = "/counted/x") -> Decision:
        principal = f"spiffe://cluster.local/ns/shop/sa/{account}"
        request = Request(method="GET", path=path, source_principal=principal, destination_port=80)
        revocations = Revocations.load(NO_REVOCATIONS)
        return self.decider.decide(self.program, self.keys, revocations, request, START + 1000 * seconds)


def test_a_tool_counts_as_a_sidecar_does(workloads: str) -> None:
    asked = Asked(workloads, counts=True)
    assert [asked.at(0).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert asked.at(0, account="b").allowed, "another caller has a bucket of its own"
    assert asked.at(0, path="/else").response_headers_to_add == []
    refused = asked.at(19)
    assert (refused.reason, refused.policy, refused.rule) == ("rate_limited", "shop/callers", 0)
    assert refused.response_headers_to_add == [
        ("retry-after", "1"),
        ("ratelimit-policy", '"caller";q=3;w=60'),
        ("ratelimit", '"caller";r=0;t=1'),
    ]
    admitted = asked.at(20)
    assert (admitted.status, admitted.decided_by) == (200, "cache")
    assert admitted.response_headers_to_add[-1] == ("ratelimit", '"caller";r=0;t=60')


@pytest.mark.parametrize("seconds", [0, 60])
def test_the_check_service_leaves_counting_to_those_who_ask(workloads: str, seconds: int) -> None:
    asked = Asked(workloads, counts=False)
    assert {asked.at(seconds).status for _ in range(20)} == {200}
