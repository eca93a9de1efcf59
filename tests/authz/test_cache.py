"""Whatever changes, and in whichever order: a decision from memory is the one that would be made anew.

One decider lives through a random walk of policies, keys, identities, tokens and time. Each of its decisions is
compared with that of a decider that has just been made. A new kind of change is a new move of `Walk`.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.generated import AUTHENTICATIONS, CALLERS, NAMESPACE, ONE, PolicySet, policy_set, request
from support.issuer import Issuer
from support.mounts import PythonMount, engine_request
from support.reference import Asked, Policy, Token

from peltast.authz._engine import Decider, Decision, KeySets, Program, Request, Revocations
from peltast.authz.canonical import canonical
from peltast.authz.revocations import Revocation

STEPS = 60
START_MS = time.time_ns() // 1_000_000
FLAGGED = {"action": "CUSTOM", "provider": {"name": f"{NAMESPACE}/flag"}, "rules": [{}]}
CLAIMS_ONLY = {"rules": [{"when": [{"key": "request.auth.claims[groups]", "values": ["a"]}]}]}


@cache
def programs() -> list[Program]:
    choose = Random(7)
    drawn = [policy_set(choose) for _ in range(12)]
    tokens = [PolicySet(3, (Policy(NAMESPACE, "p", spec),)) for spec in (CLAIMS_ONLY, FLAGGED)]
    return [PythonMount(each).program for each in [*drawn, *tokens]]


@cache
def key_sets() -> list[KeySets]:
    """The issuers' keys, other keys under the same names, and none."""
    other = Issuer("another")
    names = [f"{NAMESPACE}/tokens[{index}]" for index in range(2)]
    documents = [[rule["jwks"] for rule in AUTHENTICATIONS[number]] for number in (1, 3)]
    documents += [[other.jwks(), ONE.jwks()], [ONE.jwks(), other.jwks()], []]
    return [
        KeySets.load(json.dumps({name: json.loads(jwks) for name, jwks in zip(names, each, strict=False)}).encode())
        for each in documents
    ]


@cache
def short_lived() -> list[Token]:
    """Tokens that begin and end while the walk is on."""
    now = START_MS // 1000
    lives = [{"exp": now + 30}, {"exp": now + 90, "nbf": now + 80}, {"exp": now + 300, "iat": now + 120}]
    return [Token(ONE.token(aud="stock", groups=["a"], **life), ONE.name) for life in lives]


@cache
def revocations() -> list[Revocations]:
    """None, and those of a subject and of an issuer, until some time of the walk."""
    now = START_MS // 1000
    made = [
        [],
        [Revocation(ONE.name, subject="ada", issued_before=now)],
        [Revocation(ONE.name, issued_before=now + 60)],
    ]
    documents = [{"schema": 1, "revocations": [revocation.to_json() for revocation in each]} for each in made]
    return [Revocations.load(canonical(document)) for document in documents]


class Walk:
    """The world as it is now, and what may happen to it."""

    def __init__(self, choose: Random) -> None:
        self.choose = choose
        self.program, self.keys, self.now_ms = programs()[0], key_sets()[0], START_MS
        self.revocations = revocations()[0]
        self.asked: list[Asked] = [request(choose, CALLERS[0])]
        self.moves = [
            self.change_program,
            self.change_keys,
            self.revoke,
            self.pass_time,
            self.go_back,
            self.ask_otherwise,
        ]

    def step(self) -> Request:
        """Changes something, or nothing; gives a request that was perhaps made before."""
        if self.choose.random() < 0.5:
            self.choose.choice(self.moves)()
        return engine_request(self.choose.choice(self.asked[-4:]))

    def change_program(self) -> None:
        self.program = self.choose.choice(programs())

    def change_keys(self) -> None:
        self.keys = self.choose.choice(key_sets())

    def revoke(self) -> None:
        """Or take back, which operators cannot."""
        self.revocations = self.choose.choice(revocations())

    def pass_time(self) -> None:
        self.now_ms += self.choose.choice([1, 999, 20_000, 61_000])

    def go_back(self) -> None:
        """Wall clocks are set."""
        self.now_ms -= self.choose.choice([1, 30_000])

    def ask_otherwise(self) -> None:
        asked = request(self.choose, self.choose.choice(CALLERS))
        if self.choose.random() < 0.4:
            asked = replace(asked, token=self.choose.choice(short_lived()))
        self.asked.append(asked)


def told(decision: Decision) -> dict[str, Any]:
    """Everything about `decision` but where it came from."""
    names = [name for name in dir(Decision) if not name.startswith("_") and name != "decided_by"]
    return {name: getattr(decision, name) for name in names}


def test_a_decision_from_memory_is_the_one_that_would_be_made_anew() -> None:
    from_memory: Counter[bool] = Counter()

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(st.randoms(use_true_random=False))
    def walk(choose: Random) -> None:
        world, living = Walk(choose), Decider()
        for _ in range(STEPS):
            asked = world.step()
            remembered = living.decide(world.program, world.keys, world.revocations, asked, world.now_ms)
            anew = Decider().decide(world.program, world.keys, world.revocations, asked, world.now_ms)
            assert told(remembered) == told(anew)
            from_memory[remembered.decided_by == "cache"] += 1

    walk()
    assert from_memory[True] > from_memory.total() / 10, f"little came from memory: {from_memory}"
