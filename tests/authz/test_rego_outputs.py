"""What a Rego policy reads of bodies and answers beside yes and no, from YAML to the check service's answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from google.protobuf.json_format import MessageToDict

from peltast.authz.check.convert import check_response
from peltast.authz.check.documents import check_revision
from peltast.authz.check.http_form import http_answer, http_question
from peltast.authz.check.service import CheckService

Make = Callable[..., Any]

CATALOG = "spiffe://cluster.local/ns/shop/sa/catalog"
CUSTOM = {"action": "CUSTOM", "provider": {"name": "r"}, "rules": [{}]}


def rego(answer: str, **more: Any) -> dict[str, Any]:
    return {"entrypoint": "data.p.answer", "module": f"package p\nimport rego.v1\n{answer}\n", **more}


def decide(mesh: Make, policy: Make, spec: dict[str, Any], **request: Any) -> Any:
    return mesh(policy(CUSTOM), policy(spec, kind="RegoPolicy", name="r")).decide(**request)


def allowing(members: str) -> dict[str, Any]:
    return rego(f'answer := {{"allowed": true, {members}}}')


# Outputs --------------------------------------------------------------------------------------------------------------


def test_parameters_and_metadata_are_answered(mesh: Make, policy: Make) -> None:
    members = (
        '"query_parameters_to_set": {"a": "1", "b": ["2", "3"]}, "query_parameters_to_remove": ["c"],'
        '"dynamic_metadata": {"tier": {"level": 3, "names": {"x"}}}'
    )
    decision = decide(mesh, policy, allowing(members), path="/?%63=1&a=2&d")
    assert decision.query_parameters_to_set == [("a", "1"), ("b", "2"), ("b", "3")]
    assert (decision.query_parameters_to_remove, decision.query_parameters_respelled) == (["c"], ["%63"])
    assert json.loads(decision.dynamic_metadata) == {"tier": {"level": 3, "names": ["x"]}}


@pytest.mark.parametrize(
    "members",
    [
        '"query_parameters_to_set": ["a"]',
        '"query_parameters_to_set": {"a": 1}',
        '"query_parameters_to_set": {"a": [1]}',
        '"query_parameters_to_set": {"a": "1&b=2"}',
        '"query_parameters_to_set": {"a": "1#"}',
        '"query_parameters_to_set": {"a": "1 2"}',
        '"query_parameters_to_set": {"a=b": "1"}',
        '"query_parameters_to_set": {"": "1"}',
        '"query_parameters_to_remove": "a"',
        '"query_parameters_to_remove": ["a\\r\\nb"]',
        '"dynamic_metadata": ["a"]',
        '"dynamic_metadata": "a"',
        '"dynamic_metadata": {"peltast.dev": {}}',
        '"dynamic_metadata": {"a": concat("", [x | some i in [1,2,3,4,5,6,7,8,9]; some j in [1,2,3,4,5,6,7,8,9];'
        f' some k in [1,2,3,4,5,6,7,8,9]; x := "{"x" * 25}"])}}',
    ],
)
def test_other_answers_are_failures(mesh: Make, policy: Make, members: str) -> None:
    decision = decide(mesh, policy, {**allowing(members), "timeout": "50ms"})
    assert (decision.allowed, decision.reason) == (False, "rego_failed")


def test_a_denial_has_metadata_and_changes_no_query(mesh: Make, policy: Make) -> None:
    answer = 'answer := {"allowed": false, "query_parameters_to_remove": ["a"], "dynamic_metadata": {"a": 1}}'
    decision = decide(mesh, policy, rego(answer))
    assert (decision.allowed, decision.query_parameters_to_remove) == (False, [])
    assert json.loads(decision.dynamic_metadata) == {"a": 1}


def test_what_several_policies_want_is_done_one_after_the_other(mesh: Make, policy: Make) -> None:
    first = allowing(
        '"headers": {"x-a": "1", "x-b": "1"}, "query_parameters_to_set": {"a": "1"},'
        '"dynamic_metadata": {"a": 1, "b": 1}'
    )
    second = allowing(
        '"headers": {"x-a": ["2", "3"]}, "query_parameters_to_set": {"a": "2"}, "dynamic_metadata": {"b": 2}'
    )
    made = mesh(
        policy(CUSTOM, name="a"),
        policy({**CUSTOM, "provider": {"name": "s"}}, name="b"),
        policy(first, kind="RegoPolicy", name="r"),
        policy(second, kind="RegoPolicy", name="s"),
    )
    decision = made.decide()
    assert decision.request_headers_to_set == [("x-b", "1"), ("x-a", "2"), ("x-a", "3")]
    assert decision.query_parameters_to_set == [("a", "2")]
    assert json.loads(decision.dynamic_metadata) == {"a": 1, "b": 2}


# Notes ----------------------------------------------------------------------------------------------------------------


def test_what_is_printed_and_annotated_is_told_and_remembered(mesh: Make, policy: Make) -> None:
    answer = (
        '# METADATA\n# title: Only paths\n# custom: {owner: web}\nanswer if {\n  print("path", input.parsed_path)\n}'
    )
    made = mesh(policy(CUSTOM), policy(rego(answer), kind="RegoPolicy", name="r"))
    first, again = made.decide(path="/a"), made.decide(path="/a")
    assert (first.decided_by, again.decided_by) == ("engine", "cache")
    for decision in (first, again):
        assert decision.prints == 'RegoPolicy shop/r:7: path ["a"]'
        assert json.loads(decision.annotations) == {
            "policy": "shop/r",
            "title": "Only paths",
            "custom": {"owner": "web"},
        }


def test_a_denial_by_another_policy_has_the_notes_too(mesh: Make, policy: Make) -> None:
    deny = {"action": "DENY", "rules": [{}]}
    made = mesh(
        policy(CUSTOM), policy(deny, name="d"), policy(rego('answer if print("x")'), kind="RegoPolicy", name="r")
    )
    decision = made.decide()
    assert (decision.reason, decision.prints) == ("deny_rule", "RegoPolicy shop/r:3: x")


# Bodies in a CheckRequest ---------------------------------------------------------------------------------------------

READS = "answer if input.parsed_body.a == 1"


def asked(headers: dict[str, str], **body: Any) -> CheckRequest:
    listed = [HeaderValue(key=name, raw_value=value.encode()) for name, value in headers.items()]
    http = AttributeContext.HttpRequest(method="POST", host="h", path="/", header_map=HeaderMap(headers=listed), **body)
    return CheckRequest(
        attributes=AttributeContext(
            destination=AttributeContext.Peer(principal=CATALOG), request=AttributeContext.Request(http=http)
        )
    )


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        ({"body": '{"a": 1}'}, {}, "rego_allowed"),
        ({"raw_body": b'{"a": 1}'}, {}, "rego_allowed"),
        ({"raw_body": b'{"a": 1}'}, {"content-length": "8"}, "rego_allowed"),
        ({"raw_body": b'{"a": 1}'}, {"content-length": "9"}, "body_too_large"),
        ({"raw_body": b'{"a": 1}'}, {"content-length": "9" * 30}, "body_too_large"),
        ({"raw_body": b'{"a": 1}'}, {"content-length": "x"}, "rego_allowed"),
        ({"raw_body": b'{"a": 1}'}, {"x-envoy-auth-partial-body": "true"}, "body_too_large"),
        ({"raw_body": b'{"a": 1}'}, {"x-envoy-auth-partial-body": "false"}, "rego_allowed"),
        ({}, {"content-length": "8"}, "body_too_large"),
        ({}, {}, "rego_denied"),
        ({"raw_body": b"{"}, {}, "body_malformed"),
    ],
)
def test_the_body_that_envoy_sends_is_read(
    mesh: Make, policy: Make, body: dict[str, Any], headers: dict[str, str], reason: str
) -> None:
    service = CheckService()
    service.take(check_revision(mesh(policy(CUSTOM), policy(rego(READS), kind="RegoPolicy", name="r")).revision))
    decision = service.decide(asked({"content-type": "application/json", **headers}, **body))
    assert decision.reason == reason


def test_a_body_that_is_the_callers_fault_does_not_fail_open(mesh: Make, policy: Make) -> None:
    headers = [("content-type", "application/json")]
    decision = decide(mesh, policy, rego(READS, onError="allow"), headers=headers, body=b"{")
    assert (decision.allowed, decision.status, decision.reason) == (False, 400, "body_malformed")
    limited = rego(READS, onError="allow", includeRequestBodyInCheck={"maxRequestBytes": 4})
    decision = decide(mesh, policy, limited, headers=headers, body=b'{"a": 1}')
    assert (decision.allowed, decision.status, decision.reason) == (False, 413, "body_too_large")
    assert not decision.cacheable


# Answers of the check service -----------------------------------------------------------------------------------------

WANTS = allowing(
    '"headers": {"x-a": ["1", "2"]}, "query_parameters_to_set": {"a": "1"}, "query_parameters_to_remove": ["b"],'
    '"dynamic_metadata": {"tier": "gold"}'
)


def answered(mesh: Make, policy: Make, spec: dict[str, Any], *, sidecar: bool) -> CheckResponse:
    made = mesh(policy(CUSTOM), policy(spec, kind="RegoPolicy", name="r"))
    return check_response(made.decide(path="/?%62=1"), tuple(made.program.attributes), sidecar=sidecar)


@pytest.mark.parametrize(("sidecar", "removed"), [(True, ["b"]), (False, ["b", "%62"])])
def test_an_answer_carries_what_a_policy_wants(mesh: Make, policy: Make, removed: list[str], *, sidecar: bool) -> None:
    response = answered(mesh, policy, WANTS, sidecar=sidecar)
    headers = [(option.header.value, option.append.value) for option in response.ok_response.headers]
    assert headers == [("1", False), ("2", True)]
    assert [(each.key, each.value) for each in response.ok_response.query_parameters_to_set] == [("a", "1")]
    assert list(response.ok_response.query_parameters_to_remove) == removed
    assert MessageToDict(response.dynamic_metadata)["tier"] == "gold"


def test_over_http_values_are_joined_and_what_it_cannot_carry_is_denied(mesh: Make, policy: Make) -> None:
    carried = answered(mesh, policy, allowing('"headers": {"x-a": ["1", "2"]}'), sidecar=False)
    assert http_answer(carried) == (200, [("x-a", "1,2")], b"")
    status, _, body = http_answer(answered(mesh, policy, WANTS, sidecar=False))
    assert (status, b"cannot carry" in body) == (403, True)


def test_over_http_the_body_is_unknown(mesh: Make, policy: Make) -> None:
    service = CheckService()
    spec = rego("answer if not input.parsed_body.a", onError="allow")
    service.take(check_revision(mesh(policy(CUSTOM), policy(spec, kind="RegoPolicy", name="r")).revision))
    question = http_question("POST", "/ext_authz/a", [("host", "h")], CATALOG)
    assert service.decide(question).reason == "attribute_unknown"
