"""The compiler by example: tests/golden/compile/NAME.yaml compiles to NAME.out.yaml, for the workload shop/catalog."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from peltast.authz._engine import KeySets, LoadError, Program
from peltast.authz.canonical import canonical
from peltast.authz.compile import recording
from peltast.authz.revision import Revision, compile_revision
from peltast.policies.kinds.audit import AuditPolicySpec
from peltast.policies.kinds.authorization import AuthorizationPolicySpec, is_template
from peltast.policies.snapshot import load

GOLDEN = Path(__file__).parent.parent / "golden" / "compile"
INPUTS = sorted(path for path in GOLDEN.glob("*.yaml") if not path.name.endswith(".out.yaml"))
WORKLOAD = "shop/catalog"
NOTHING = {"schema": 1, "workload": {"principal": "spiffe://a/b", "ports": {}}, "authentication": [], "rego": []}


def compiled(workloads: str, text: str) -> Revision:
    return compile_revision(load({"w.yaml": workloads.encode(), "p.yaml": text.encode()}, "cluster.local", 1))


def test_there_are_examples_and_each_output_has_its_input() -> None:
    outputs = {path.name.removesuffix(".out.yaml") for path in GOLDEN.glob("*.out.yaml")}
    assert outputs == {path.stem for path in INPUTS}
    assert len(outputs) > 20


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_an_example_compiles_to_its_output(path: Path, workloads: str) -> None:
    revision = compiled(workloads, path.read_text())
    program = json.loads(revision.programs[WORKLOAD])
    assert program.pop("schema") == 1
    assert program["workload"].pop("principal") == "spiffe://cluster.local/ns/shop/sa/catalog"
    assert program["workload"].pop("ports") == {"80": 8080, "90": 9090}
    assert program["workload"].pop("plaintext") == []
    given: dict[str, Any] = {**program, "keys": json.loads(revision.keys[WORKLOAD])}
    wanted = yaml.safe_load(path.with_name(f"{path.stem}.out.yaml").read_text())
    assert {name: value for name, value in given.items() if value} == wanted


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)
def test_the_engine_loads_what_is_compiled(path: Path, workloads: str) -> None:
    revision = compiled(workloads, path.read_text())
    assert Program.load(revision.programs[WORKLOAD]).principal == "spiffe://cluster.local/ns/shop/sa/catalog"
    KeySets.load(revision.keys[WORKLOAD])


def test_the_same_policies_compile_to_the_same_bytes_wherever_they_are(
    workloads: str, policy: Callable[..., str]
) -> None:
    first, second = policy({"rules": [{}]}, name="a"), policy({"action": "DENY", "rules": [{}]}, name="b")
    here = compiled(workloads, f"{first}---\n{second}").programs[WORKLOAD]
    assert compiled(workloads, f"# a comment\n{second}---\n{first}").programs[WORKLOAD] == here


def test_a_policy_for_others_leaves_a_program_as_it_is(workloads: str, policy: Callable[..., str]) -> None:
    other = policy({"rules": [{}]}, namespace="front")
    assert compiled(workloads, other).programs[WORKLOAD] == compiled(workloads, "").programs[WORKLOAD]


def test_the_policy_name_of_the_trust_domain_is_cluster_local(workloads: str, policy: Callable[..., str]) -> None:
    """As in Istio: policies need not know what the mesh's trust domain is called."""
    given = ["cluster.local/ns/a/sa/b", "td.example/ns/a/sa/c", "*local/ns/a/sa/d"]
    rule = {"from": [{"source": {"principals": given}}]}
    files = {"w.yaml": workloads.encode(), "p.yaml": policy({"rules": [rule]}).encode()}
    program = json.loads(compile_revision(load(files, "td.example", 1)).programs[WORKLOAD])
    [[condition]] = program["policies"][0]["rules"][0]["from"]
    assert condition["any"] == [
        {"exact": "td.example/ns/a/sa/b"},
        {"exact": "td.example/ns/a/sa/c"},
        {"suffix": "local/ns/a/sa/d"},
    ]


PIECES = st.lists(st.sampled_from(["/", "a", "{*}", "{**}", "/{*}", "/{**}", "{", "}", "*"]), max_size=4).map("".join)


@given(PIECES, st.sampled_from(["/{*}", "/{**}", "{*}"]), PIECES)
def test_the_engine_loads_the_path_templates_that_the_kind_takes_and_no_others(
    front: str, operator: str, end: str
) -> None:
    path = front + operator + end
    assert is_template(path)
    taken = not AuthorizationPolicySpec.model_validate(
        {"rules": [{"to": [{"operation": {"paths": [path]}}]}]}
    ).problems()
    condition = {"attribute": "request.path", "any": [{"template": path}], "none": []}
    rule = {"from": [], "to": [[condition]], "when": []}
    program = {**NOTHING, "policies": [{"name": "shop/p", "action": "ALLOW", "rules": [rule]}]}
    try:
        Program.load(canonical(program))
        loaded = True
    except LoadError:
        loaded = False
    assert taken == loaded


CLAIMS = st.text("a:/- .é", min_size=1, max_size=12) | st.builds("claims[{}]".format, st.text("a.é", min_size=1))
CHOSEN = st.fixed_dictionaries({"as": st.sampled_from(["keep", "redact", "hash"])})


@given(st.dictionaries(st.text("ax-_", min_size=1), CHOSEN, max_size=4), st.dictionaries(CLAIMS, CHOSEN, max_size=4))
def test_the_engine_loads_the_headers_and_claims_that_the_kind_takes(
    headers: dict[str, Any], claims: dict[str, Any]
) -> None:
    chosen = {
        kind: [{"name": name, **how} for name, how in given.items()]
        for kind, given in (("headers", headers), ("claims", claims))
    }
    spec = AuditPolicySpec.model_validate_json(json.dumps({"record": chosen}))
    assert all("given twice" in given for _, given, _ in spec.problems()), "a and claims[a] are the same claim"
    lowered = recording(spec.record)
    assert [len(lowered.get(kind, [])) for kind in chosen] == [len(headers), len(claims)], "none is lost"
    Program.load(canonical({**NOTHING, "policies": [], "recording": lowered}))
