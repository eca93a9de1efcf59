"""The annotation ``istio.io/dry-run``: what cannot be tried is refused, as it would be enforced instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from peltast.policies.problems import Problem
from peltast.policies.snapshot import Snapshot, load

Problems = Callable[..., list[Problem]]

POLICY = """
apiVersion: security.istio.io/v1
kind: @KIND@
metadata:
  name: tried
  annotations:
    istio.io/dry-run: "@VALUE@"
spec: @SPEC@
"""
DENY = "{action: DENY, rules: [{}]}"


def document(value: str, spec: str = DENY, kind: str = "AuthorizationPolicy") -> str:
    return POLICY.replace("@VALUE@", value).replace("@SPEC@", spec).replace("@KIND@", kind)


def snapshot(value: str, spec: str = DENY) -> Snapshot:
    return load({"policy.yaml": document(value, spec).encode()}, "cluster.local", 1)


@pytest.mark.parametrize(
    ("value", "dry_run"),
    [(text, True) for text in ("1", "t", "T", "true", "TRUE", "True")]
    + [(text, False) for text in ("0", "f", "F", "false", "FALSE", "False")],
)
def test_the_annotation_is_a_boolean_as_go_writes_them(value: str, *, dry_run: bool) -> None:
    (resource,) = snapshot(value).resources
    assert resource.dry_run is dry_run


def test_an_allow_policy_can_be_tried() -> None:
    assert snapshot("true", "{}").resources[0].dry_run


@pytest.mark.parametrize(
    ("kind", "spec", "value", "allowed"),
    [
        ("AuthorizationPolicy", DENY, "yes", '"true" or "false" is expected'),
        ("AuthorizationPolicy", DENY, "", '"true" or "false" is expected'),
        ("AuthorizationPolicy", "{action: AUDIT, rules: [{}]}", "true", "the action is AUDIT"),
        ("AuthorizationPolicy", "{action: CUSTOM, provider: {name: x}, rules: [{}]}", "true", "the action is CUSTOM"),
        ("RequestAuthentication", "{}", "true", "only an AuthorizationPolicy can be tried"),
        ("PeerAuthentication", "{}", "true", "only an AuthorizationPolicy can be tried"),
    ],
)
def test_what_cannot_be_tried_is_refused(problems_of: Problems, kind: str, spec: str, value: str, allowed: str) -> None:
    (problem,) = problems_of(policy_yaml=document(value, spec, kind))
    assert (problem.file, problem.line) == ("policy.yaml", 7)
    assert problem.field == "metadata.annotations.istio.io/dry-run"
    assert problem.given == f"{value!r} is given"
    assert allowed in problem.allowed


def test_a_policy_on_trial_is_another_version_than_one_in_force() -> None:
    assert snapshot("true").version != snapshot("false").version
