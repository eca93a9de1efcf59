"""Leases of global RateLimitPolicies: to whom they are lent, how many, and what is said where they are not."""

from __future__ import annotations

import json

import pytest

from peltast.authz.protos.quota_pb2 import BorrowManyRequest, PolicyBorrow, PolicyLent, Returned
from peltast.authz.quota.counters import MemoryCounters
from peltast.authz.quota.policy_leases import MAX_BORROWS, PolicyLeases
from peltast.authz.quota.rate_limit_service import InvalidRequest
from peltast.policies.snapshot import Snapshot, load

CATALOG, WEB = "spiffe://cluster.local/ns/shop/sa/catalog", "spiffe://cluster.local/ns/shop/sa/web"
POLICY = """
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {name: p, namespace: shop}
spec:
  scope: @SCOPE@
  selector: {matchLabels: {app: catalog}}
  limits:
    - rates: [{requests: 100, per: 1d}]
    - rates: [{requests: 1000, per: 1d}, {requests: 60, per: 1h, burst: 30}]
"""


def snapshot(scope: str) -> Snapshot:
    entries = "".join(
        f"---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop}}\n"
        f"spec: {{address: 127.0.0.{number}, labels: {{app: {name}}}, serviceAccount: {name}}}\n"
        for number, name in enumerate(("catalog", "web"), 2)
    )
    return load({"a.yaml": (entries + POLICY.replace("@SCOPE@", scope)).encode()}, "cluster.local", 1)


@pytest.fixture
def leases() -> PolicyLeases:
    leases = PolicyLeases(MemoryCounters())
    leases.take(snapshot("global"))
    return leases


async def borrow(leases: PolicyLeases, *borrows: PolicyBorrow, holder: str = CATALOG) -> list[PolicyLent]:
    return list((await leases.borrow(BorrowManyRequest(borrows=borrows), holder)).answers)


def of(limit: int, tokens: int, key: bytes = b"k", returned: tuple[Returned, ...] = ()) -> PolicyBorrow:
    return PolicyBorrow(policy="shop/p", limit=limit, key=key, tokens=tokens, returned=returned)


async def test_each_gets_at_most_a_tenth_of_the_burst_of_its_own_bucket(leases: PolicyLeases) -> None:
    answers = await borrow(leases, of(0, 50), of(0, 4, b"other"), of(1, 50))
    assert [answer.lent.tokens for answer in answers] == [10, 4, 3]
    assert {answer.lent.valid_milliseconds for answer in answers} == {2000}


async def test_no_more_is_lent_than_there_is_and_what_comes_back_is_lent_again(leases: PolicyLeases) -> None:
    lent = [(await borrow(leases, of(0, 50)))[0].lent for _ in range(11)]
    assert [each.tokens for each in lent] == [10] * 10 + [0]
    assert 0 < lent[-1].retry_after_milliseconds <= 864_000
    back = Returned(lease=lent[0].lease, unused=7)
    assert (await borrow(leases, of(0, 50, returned=(back,))))[0].lent.tokens == 7
    assert (await borrow(leases, of(0, 50, returned=(back,))))[0].lent.tokens == 0, "once"


@pytest.mark.parametrize(
    ("borrowed", "holder"),
    [
        (of(0, 1), WEB),
        (of(2, 1), CATALOG),
        (PolicyBorrow(policy="shop/q", key=b"k", tokens=1), CATALOG),
        (of(0, 1, b"k" * 1025), CATALOG),
        (of(0, 1, returned=(Returned(lease="x"),) * 17), CATALOG),
    ],
    ids=["for another workload", "no such limit", "no such policy", "a long key", "many leases"],
)
async def test_what_is_not_lent(leases: PolicyLeases, borrowed: PolicyBorrow, holder: str) -> None:
    (answer,) = await borrow(leases, borrowed, holder=holder)
    assert answer.error
    assert not answer.HasField("lent")


async def test_local_limits_are_not_lent() -> None:
    leases = PolicyLeases(MemoryCounters())
    leases.take(snapshot("local"))
    (answer,) = await borrow(leases, of(0, 1))
    assert "no global limit shop/p[0]" in answer.error


async def test_a_limit_is_lent_by_the_snapshot_before_the_last_too(leases: PolicyLeases) -> None:
    leases.take(snapshot("local"))
    assert (await borrow(leases, of(0, 1)))[0].lent.tokens == 1, "sidecars count by it until they have the next"
    leases.take(snapshot("local"))
    assert (await borrow(leases, of(0, 1)))[0].error


async def test_no_room_is_told_for_each() -> None:
    leases = PolicyLeases(MemoryCounters(max_keys=2))
    leases.take(snapshot("global"))
    answers = await borrow(leases, of(0, 1, b"a"), of(0, 1, b"b"), of(0, 1, b"c"))
    assert [bool(answer.error) for answer in answers] == [False, False, True]


async def test_questions_are_bounded(leases: PolicyLeases) -> None:
    with pytest.raises(InvalidRequest, match=json.dumps(MAX_BORROWS)):
        await borrow(leases, *[of(0, 1)] * (MAX_BORROWS + 1))
