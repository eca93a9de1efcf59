"""One decision, four ways: our engine in Python, our engine in Envoy, a plain reference, and Envoy's own filters.

Requests to sets of policies are drawn at random; all four must decide alike, and the first three by the same rule for
the same reason. 20,000 pairs of policies and request; ten times that, and other ones, in `make soak`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

from support.envoys import Envoys
from support.generated import CALLERS, Caller, PolicySet, policy_set, request
from support.inbound import Inbound, running
from support.mounts import PythonMount
from support.rbac import NotExpressible, filters_of, is_comparable
from support.reference import Asked, Policy

SOAK = os.environ.get("PELTAST_EXAMPLES") == "other"
SEED = random.SystemRandom().getrandbits(32) if SOAK else 20261121
GROUPS = 10 if SOAK else 1
SETS, REQUESTS = 250, 80
"""Policy sets of an Envoy, and requests to each."""


def test_four_ways_to_decide_agree(state: Path) -> None:
    envoys = Envoys(state)
    reasons: Counter[str] = Counter()
    by_rbac: Counter[bool] = Counter()
    for group in range(GROUPS):
        choose = random.Random(SEED + group)
        sets = [policy_set(choose) for _ in range(SETS)]
        with running(state, envoys, f"group-{group}", sets) as inbound:
            for number, policies in enumerate(sets):
                asked = [(caller, request(choose, caller)) for caller in choose.choices(CALLERS, k=REQUESTS)]
                reasons += compare(inbound, policies, asked)
                by_rbac += compare_with_rbac(inbound, number, policies, asked)
    assert reasons.total() >= 20_000 * GROUPS
    assert min(reasons[reason] for reason in WANTED) >= 50 * GROUPS, reasons
    assert min(by_rbac[True], by_rbac[False]) >= 4_000 * GROUPS, by_rbac


WANTED = [
    *("allow_rule", "no_allow_rule", "deny_rule", "no_allow_policy", "rego_allowed", "rego_denied"),
    *("token_signature", "token_audience", "token_issuer", "token_expired", "token_malformed"),
]
"""Reasons that must come up often, or little is tried."""


def compare(inbound: Inbound, policies: PolicySet, asked: list[tuple[Caller, Asked]]) -> Counter[str]:
    """The reasons for which both mounts and the reference decided."""
    mount = PythonMount(policies)
    inbound.take(mount.revision)
    wanted = [policies.decide(each) for _, each in asked]
    for (_, each), here, in_envoy, reference in zip(
        asked, map(mount.decide, (each for _, each in asked)), inbound.decide(asked), wanted, strict=True
    ):
        assert here == in_envoy == reference, described(policies, each)
    return Counter(outcome.reason for outcome in wanted)


def compare_with_rbac(
    inbound: Inbound, number: int, policies: PolicySet, asked: list[tuple[Caller, Asked]]
) -> Counter[bool]:
    """What Envoy's own filters decided, for what they can express."""
    try:
        filters_of(policies)
    except NotExpressible:
        return Counter()
    comparable = [(caller, each) for caller, each in asked if is_comparable(each)]
    allowed = inbound.decide_by_rbac(number, comparable)
    for (_, each), by_rbac in zip(comparable, allowed, strict=True):
        assert by_rbac == policies.decide(each).allowed, described(policies, each)
    return Counter(allowed)


def described(policies: PolicySet, asked: Asked) -> str:
    return f"seed {SEED}\n{policies.text}\n{asked}"


def test_the_server_name_that_a_peer_asks_for_is_known_to_rules(state: Path) -> None:
    rule = {"when": [{"key": "connection.sni", "values": ["catalog.shop"]}]}
    policies = PolicySet(0, (Policy("shop", "names", {"action": "DENY", "rules": [rule]}),))
    with running(state, Envoys(state), "envoy", [policies]) as inbound:
        inbound.take(policies.compile())
        outcomes = inbound.decide([(caller, Asked()) for caller in CALLERS])
    assert [outcome.reason == "deny_rule" for outcome in outcomes] == [each.sni == "catalog.shop" for each in CALLERS]
