"""What the real `opa` answers to policies made at random, both tiers answer, or say that they have no answer.

Where there is no Go, whose module OPA is, these are skipped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator

import pytest
from support.rego.generated import DATA, generate
from support.rego.outcome import ERROR, Ours, same
from support.rego.real import Opa, running_opa

MANY = 6000 if os.environ.get("PELTAST_EXAMPLES") == "other" else 300
"""Modules that are made; `make soak` makes more."""


@pytest.fixture(scope="module")
def opa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opa]:
    with running_opa(tmp_path_factory.mktemp("opa")) as running:
        running.put_data(DATA)
        yield running


def test_generated_policies_are_answered_as_opa_answers_them(opa: Opa) -> None:
    counted: Counter[str] = Counter()
    wrong = []
    data = json.dumps(DATA)
    for seed in range(MANY):
        policy = generate(seed)
        if not opa.take(policy.module):
            counted["refused by opa"] += 1
            continue
        tiers = {tier: Ours(tier, policy.module, data) for tier in ("check", "sidecar")}
        for given in policy.inputs:
            wanted = opa.answer(given)
            for name, tier in tiers.items():
                kind = judged(tier, given, wanted)
                counted[f"{name}: {kind}"] += 1
                if kind == "wrong":
                    wrong.append(f"{seed}, {name}, {given}: {tier.answer(given)} for {wanted}\n{policy.module}")
    print(dict(counted))
    assert not wrong, "\n".join(wrong[:3])
    for name in ("check", "sidecar"):
        assert counted[f"{name}: same"] > MANY / 4, "what is compared is enough to say something"


def judged(tier: Ours, given: str, wanted: object) -> str:
    """What an answer is worth. No answer is none that is wrong: the policy's `onError` decides then."""
    if tier.refusal is not None:
        return "refused"
    got = tier.answer(given)
    if same(got, wanted):
        return "same"
    return "failed" if got == ERROR else "wrong"


NEGATIONS = """
not startswith(input.gone, "a")
not startswith(lower(input.gone), "a")
not lower(input.gone) == "a"
not count(input.gone) > 0
not "a" in split(input.gone, ",")
not 1 in input.gone
not input.gone == 1
not input.gone
not input.gone > 1
not input.gone + 1 == 2
not input.gone != 1
not [input.gone] == [1]
not data.by[input.gone]
not data.by[input.parsed_path[0]].role
not none
not none == 1
not none in [1]
not f(none)
not f(1)
not f(1) == 1
not f(f(1))
not f(2)
not f(2) == 2
not (lower("A") == "b")
not to_number("x") == 1
not 1 / data.numbers[0] == 1
not [x | x := lower(input.gone)] == ["a"]
not regex.match("a", input.gone)
"""


@pytest.mark.parametrize("condition", NEGATIONS.strip().splitlines())
@pytest.mark.parametrize(
    "body", ["answer if {}", "answer if {{ {} }}", "answer := [1 | {}]", "answer if {{ x := 1; x > 0; {} }}"]
)
def test_what_a_negated_expression_is_made_of_must_be_defined(opa: Opa, condition: str, body: str) -> None:
    rules = "none := 1 if input.gone\nf(x) := x if x == data.numbers[2]\n"
    module = f"package p\nimport rego.v1\n{rules}{body.format(condition)}\n"
    given = '{"parsed_path": ["a"]}'
    assert opa.take(module)
    assert same(Ours("check", module, json.dumps(DATA)).answer(given), opa.answer(given)), opa.answer(given)
