"""RegoPolicy from YAML through admission to decisions, and what admission refuses."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from support.running import descendants

from peltast.authz import admission
from peltast.authz.admission import RegoAdmission
from peltast.authz.admission_worker import Question
from peltast.authz.revision import Revision, compile_revision
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.snapshot import load

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[..., Any]

CUSTOM = {"action": "CUSTOM", "provider": {"name": "rules"}, "rules": [{}]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def admit() -> AsyncIterator[RegoAdmission]:
    async with RegoAdmission() as made:
        yield made


def rego_yaml(module: str | None, name: str = "rules", entrypoint: str = "data.app.allow", **more: Any) -> str:
    """One RegoPolicy with its module as people write it, so that lines can be told."""
    spec = {"entrypoint": entrypoint, **more}
    head = f"apiVersion: peltast.dev/v1\nkind: RegoPolicy\nmetadata: {{name: {name}, namespace: shop}}\n"
    text = f"{head}spec:\n" + "".join(f"  {field}: {json.dumps(value)}\n" for field, value in spec.items())
    if module is not None:
        text += "  module: |\n" + "".join(f"    {line}\n" for line in module.strip("\n").split("\n"))
    return text


def app(*rules: str) -> str:
    return "\n".join(["package app", *rules])


def revision_of(*documents: str, files: dict[str, bytes] | None = None) -> Revision:
    snapshot = load({"p.yaml": "---\n".join(documents).encode(), **(files or {})}, "cluster.local", 1)
    return compile_revision(snapshot)


async def refusals(admit: RegoAdmission, revision: Revision) -> tuple[Problem, ...]:
    with pytest.raises(InvalidConfiguration) as caught:
        await admit.check(revision.snapshot)
    return caught.value.problems


# Results --------------------------------------------------------------------------------------------------------------

OBJECT = """
package app
allow := {
  "allowed": input.attributes.request.http.method == "GET",
  "headers": {"X-User": "ada", "x-group": ["a", "b"]},
  "response_headers_to_add": [{"X-Seen": "1"}],
  "request_headers_to_remove": ["x-secret"],
  "body": "no",
  "http_status": 451,
}
"""


async def ruled(admit: RegoAdmission, mesh: Make, policy: Make, module: str, **more: Any) -> Any:
    made = mesh(rego_yaml(module, **more), policy(CUSTOM))
    await admit.check(made.revision.snapshot)
    return made


@pytest.mark.parametrize(
    ("rules", "allowed", "reason"),
    [
        pytest.param("allow := true", True, "rego_allowed", id="true"),
        pytest.param("allow := false", False, "rego_denied", id="false"),
        pytest.param('allow if input.version.ext_authz == "v2"', False, "rego_denied", id="undefined"),
        pytest.param('allow := {"allowed": true}', True, "rego_allowed", id="object that allows"),
        pytest.param('allow := {"allowed": false}', False, "rego_denied", id="object that denies"),
        pytest.param("allow := {}", False, "rego_failed", id="object without allowed"),
        pytest.param('allow := {"allowed": "true"}', False, "rego_failed", id="allowed is a text"),
        pytest.param('allow := "true"', False, "rego_failed", id="text"),
        pytest.param("allow := 1", False, "rego_failed", id="number"),
        pytest.param("allow := null", False, "rego_failed", id="null"),
        pytest.param("allow := [true]", False, "rego_failed", id="list"),
        pytest.param("allow := {true}", False, "rego_failed", id="set"),
        pytest.param('allow := {"allowed": true, "headers": {"x": 1}}', False, "rego_failed", id="header is a number"),
        pytest.param('allow := {"allowed": true, "headers": {"x": "a\\r\\nb: c"}}', False, "rego_failed", id="CRLF"),
        pytest.param('allow := {"allowed": true, "headers": {"a\\nb": "c"}}', False, "rego_failed", id="LF in a name"),
        pytest.param('allow := {"allowed": false, "http_status": 99}', False, "rego_failed", id="status 99"),
        pytest.param('allow := {"allowed": false, "http_status": 600}', False, "rego_failed", id="status 600"),
        pytest.param('allow := {"allowed": false, "http_status": "403"}', False, "rego_failed", id="status is a text"),
        pytest.param('allow := {"allowed": false, "body": 1}', False, "rego_failed", id="body is a number"),
    ],
)
async def test_a_result_is_read_as_the_opa_envoy_plugin_reads_it(
    admit: RegoAdmission, mesh: Make, policy: Make, rules: str, reason: str, *, allowed: bool
) -> None:
    decision = (await ruled(admit, mesh, policy, app(rules))).decide()
    assert (decision.allowed, decision.reason, decision.policy, decision.rule) == (allowed, reason, "shop/p", 0)
    assert (decision.detail is not None) == (reason == "rego_failed")


async def test_an_object_that_allows_changes_request_and_response(
    admit: RegoAdmission, mesh: Make, policy: Make
) -> None:
    decision = (await ruled(admit, mesh, policy, OBJECT)).decide(method="GET")
    assert (decision.allowed, decision.status, decision.body) == (True, 200, None)
    assert sorted(decision.request_headers_to_set) == [("x-group", "a"), ("x-group", "b"), ("x-user", "ada")]
    assert decision.request_headers_to_remove == ["x-secret"]
    assert decision.response_headers_to_add == [("x-seen", "1")]


async def test_an_object_that_denies_answers_the_client(admit: RegoAdmission, mesh: Make, policy: Make) -> None:
    decision = (await ruled(admit, mesh, policy, OBJECT)).decide(method="PUT")
    assert (decision.allowed, decision.status, decision.body) == (False, 451, "no")
    assert (decision.request_headers_to_set, decision.request_headers_to_remove) == ([], [])
    assert ("x-user", "ada") in decision.response_headers_to_add
    assert ("x-seen", "1") in decision.response_headers_to_add


async def test_headers_of_rego_stay_when_an_allow_policy_decides(
    admit: RegoAdmission, mesh: Make, policy: Make
) -> None:
    made = mesh(rego_yaml(OBJECT), policy(CUSTOM), policy({"rules": [{}]}, name="all"))
    await admit.check(made.revision.snapshot)
    decision = made.decide()
    assert (decision.reason, decision.policy) == ("allow_rule", "shop/all")
    assert ("x-user", "ada") in decision.request_headers_to_set


# Inputs ---------------------------------------------------------------------------------------------------------------

HTTP = "input.attributes.request.http"


@pytest.mark.parametrize(
    ("condition", "request_fields"),
    [
        pytest.param(f'{HTTP}.method == "PUT"', {"method": "PUT"}, id="method"),
        pytest.param(f'{HTTP}.host == "a"', {"host": "a"}, id="host"),
        pytest.param(f'{HTTP}.path == "/b?x=1"', {"path": "/a/../b?x=1"}, id="path, normalized, with its query"),
        pytest.param(f'{HTTP}.scheme == "http"', {"scheme": "http"}, id="scheme"),
        pytest.param(f'{HTTP}.protocol == "HTTP/2"', {"protocol": "HTTP/2"}, id="protocol"),
        pytest.param(f'{HTTP}.headers["x-a"] == "1"', {"headers": [("X-A", "1")]}, id="header"),
        pytest.param(f'{HTTP}.headers["x-a"] == "1,2"', {"headers": [("x-a", "1"), ("x-a", "2")]}, id="header twice"),
        pytest.param(f'not {HTTP}.headers["x-a"]', {"headers": [("x-b", "1")]}, id="no header"),
        pytest.param(f'some name; {HTTP}.headers[name] == "1"', {"headers": [("x-a", "1")]}, id="any header"),
        pytest.param(
            'input.attributes.source.principal == "spiffe://cluster.local/ns/a/sa/b"',
            {"source_principal": "spiffe://cluster.local/ns/a/sa/b"},
            id="principal",
        ),
        pytest.param(
            'input.attributes.source.address.socketAddress.address == "10.1.1.1"', {"source_ip": "10.1.1.1"}, id="ip"
        ),
        pytest.param(
            "input.attributes.destination.address.socketAddress.portValue == 9090", {"destination_port": 90}, id="port"
        ),
        pytest.param('input.parsed_path == ["a", "b c"]', {"path": "/a/b%20c?x"}, id="parsed_path"),
        pytest.param('input.parsed_path == [""]', {"path": "/"}, id="parsed_path of the root"),
        pytest.param('input.parsed_path[0] == "a"', {"path": "//x/..//a"}, id="parsed_path of a crooked path"),
        pytest.param(
            'input.parsed_query == {"a": ["1", "2 3"], "b": [""]}', {"path": "/?a=1&a=2+3&b"}, id="parsed_query"
        ),
        pytest.param("input.parsed_query == {}", {"path": "/"}, id="parsed_query of none"),
        pytest.param('input.version.ext_authz == "v3"', {"path": "/z"}, id="version"),
    ],
)
async def test_rego_reads_the_input_of_the_opa_envoy_plugin(
    admit: RegoAdmission, mesh: Make, policy: Make, condition: str, request_fields: dict[str, Any]
) -> None:
    made = await ruled(admit, mesh, policy, app(f"allow if {{ {condition} }}"))
    decision = made.decide(**request_fields)
    assert (decision.allowed, decision.detail) == (True, None)


@pytest.mark.parametrize(
    "condition",
    [f'{HTTP}.method == "GET"', f'{HTTP}.path == "/"', 'input.parsed_path == [""]', f'{HTTP}.headers["x-a"] == "1"'],
)
async def test_rego_does_not_allow_what_does_not_hold(
    admit: RegoAdmission, mesh: Make, policy: Make, condition: str
) -> None:
    made = await ruled(admit, mesh, policy, app(f"allow if {{ {condition} }}"))
    assert not made.decide(method="PUT", path="/x", headers=[("x-a", "2")]).allowed


async def test_data_comes_from_the_spec_and_from_files(admit: RegoAdmission, mesh: Make, policy: Make) -> None:
    module = b'package app\nallow if data.groups[data.name][_] == input.attributes.request.http.headers["x-user"]\n'
    files = {"rules.rego": module, "groups.json": b'{"groups": {"staff": ["ada"]}}'}
    rego = rego_yaml(None, files=["rules.rego", "groups.json"], data={"name": "staff"})
    made = mesh(rego, policy(CUSTOM), files=files)
    await admit.check(made.revision.snapshot)
    assert made.decide(headers=[("x-user", "ada")]).allowed
    assert not made.decide(headers=[("x-user", "eve")]).allowed


async def test_a_module_and_a_file_called_like_the_policy_are_both_read(
    admit: RegoAdmission, mesh: Make, policy: Make
) -> None:
    document = rego_yaml(app("allow if { not data.more.deny }"), files=["rules.rego"])
    files = {"shop/rules.yaml": document.encode(), "shop/rules.rego": b"package more\ndeny := true\n"}
    made = mesh(policy(CUSTOM), files=files)
    await admit.check(made.revision.snapshot)
    assert not made.decide().allowed


# Failing --------------------------------------------------------------------------------------------------------------

# The rule works on the empty input of admission and fails on requests: two values for one complete rule.
FAILS = app('allow := true if input.parsed_path[0] == "a"', "allow := 5 if input.parsed_path")


@pytest.mark.parametrize(
    ("on_error", "expected"),
    [
        ("deny", (False, 403, "rego_failed", "engine")),
        ("allow", (True, 200, "rego_failed", "failed-open")),
    ],
)
async def test_a_policy_that_fails_denies_unless_it_says_otherwise(
    admit: RegoAdmission, mesh: Make, policy: Make, on_error: str, expected: tuple[bool, int, str, str]
) -> None:
    made = await ruled(admit, mesh, policy, FAILS, onError=on_error)
    for _ in range(2):
        decision = made.decide(path="/a")
        assert (decision.allowed, decision.status, decision.reason, decision.decided_by) == expected
        assert not decision.cacheable
        assert decision.detail


async def test_what_fails_open_may_still_be_denied_by_a_deny_policy(
    admit: RegoAdmission, mesh: Make, policy: Make
) -> None:
    deny = policy({"action": "DENY", "rules": [{}]}, name="deny")
    made = mesh(rego_yaml(FAILS, onError="allow"), policy(CUSTOM), deny)
    await admit.check(made.revision.snapshot)
    decision = made.decide(path="/a")
    assert (decision.allowed, decision.reason, decision.decided_by) == (False, "deny_rule", "engine")


async def test_a_policy_that_runs_out_of_time_denies(admit: RegoAdmission, mesh: Make, policy: Make) -> None:
    loops = "some a in data.n; some b in data.n; some c in data.n; a + b + c < 0"
    slow = app(f"allow if {{ input.parsed_path[0] == `slow`; {loops} }}", "allow if input.parsed_path[0] == `fast`")
    made = await ruled(admit, mesh, policy, slow, data={"n": list(range(1000))}, timeout="1ms")
    decision = made.decide(path="/slow")
    assert (decision.allowed, decision.reason, decision.cacheable) == (False, "rego_failed", False)
    assert "time limit" in (decision.detail or "")
    assert made.decide(path="/fast").allowed


# Refusals -------------------------------------------------------------------------------------------------------------

REFUSED = [
    ("does not compile", app("", "allow if := 1"), 3, ""),
    ("is no Rego", "nonsense", 1, ""),
    ("Rego v0", app("allow { true }"), 2, ""),
    ("unknown built-in", app("allow if frobnicate(1)"), 2, "there is no function or built-in frobnicate"),
    ("a slip", app("allow if startwith(input.parsed_path[0], `a`)"), 2, "did you mean startswith?"),
    ("http.send", app("", "allow if http.send({}).status_code == 200"), 3, "http.send is outside the sidecar tier"),
    ("time.now_ns", app("allow if time.now_ns() > 1"), 2, "time.now_ns is outside the sidecar tier"),
    ("numbers.range", app("x := numbers.range(1, 9)", "allow := true"), 2, "numbers.range is outside"),
    ("walk", app("allow if { walk(input.parsed_path, [_, v]); v == 1 }"), 2, "walk is outside"),
    ("recursion", app("allow if f", "f if allow"), 3, "uses itself"),
    ("recursion of one", app("default allow := false", "allow if allow"), 2, "uses itself"),
    ("recursion of a function", app("f(x) := f(x)", "allow if f(1)"), 2, "uses itself"),
    ("recursion by the package", app("allow if data.app.allow"), 2, "uses itself"),
    ("recursion by the whole package", app("allow if count(data.app) > 0"), 2, "uses itself"),
    ("deep nesting", app("", "", f"x := {'[' * 13}{']' * 13}", "allow := true"), 4, "nested 13 deep"),
    ("`with`", app("", "f if input.parsed_path[0] == `a`", "allow if f with input as {}"), 4, "`with` replaces"),
    ("regex not literal", app("allow if regex.match(data.p, input.parsed_path[0])"), 2, "pattern must be a literal"),
    ("regex with classes", app(r"allow if regex.match(`\d`, input.parsed_path[0])"), 2, "pattern must be a literal"),
    ("regex with flags", app("allow if regex.match(`(?i)a`, input.parsed_path[0])"), 2, "pattern must be a literal"),
    ("sprintf with a width", app('allow if sprintf("%9999999d", [1]) == ""'), 2, "sprintf is not admitted like this"),
    ("sprintf not literal", app("allow if sprintf(data.f, [1]) == ``"), 2, "sprintf is not admitted like this"),
    ("unknown import", app("import rego.v2", "allow := true"), 2, "import rego.v2 is not known here"),
    ("too long a chain", app("allow if r0", *(f"r{n} if r{n + 1}" for n in range(60)), "r60 := true"), 0, "in a chain"),
]


@pytest.mark.parametrize(("module", "line", "says"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
async def test_what_the_sidecar_tier_does_not_admit_is_refused_at_its_line(
    admit: RegoAdmission, module: str, line: int, says: str
) -> None:
    text = rego_yaml(module, tier="sidecar")
    (problem,) = await refusals(admit, revision_of(text))
    assert (problem.file, problem.field) == ("p.yaml", "spec.module")
    assert says in problem.given
    assert problem.given
    if line:
        assert text.split("\n")[problem.line - 1].strip() == module.strip("\n").split("\n")[line - 1]


@pytest.mark.parametrize(("module", "line", "says"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
@pytest.mark.parametrize("name", ["rules.rego", "shop/rules.rego"])
async def test_what_is_refused_in_a_file_is_told_with_that_file(
    admit: RegoAdmission, module: str, line: int, says: str, name: str
) -> None:
    files = {"p.yaml": rego_yaml(None, files=[name], tier="sidecar").encode(), name: module.encode()}
    (problem,) = await refusals(admit, compile_revision(load(files, "cluster.local", 1)))
    assert problem.file == name
    assert problem.line == line or (line == 0 and problem.line > 0)
    assert says in problem.given


@pytest.mark.parametrize(
    ("module", "entrypoint", "says"),
    [
        pytest.param(app("deny := true"), "data.app.allow", "the entry point data.app.allow", id="no such rule"),
        pytest.param(app("allow := true"), "data.other.allow", "the entry point data.other.allow", id="no package"),
        pytest.param(
            app("allow if input.attributes.request.http.size == 1"), "data.app.allow", "http.size", id="no such input"
        ),
        pytest.param(app("allow if input.user == `a`"), "data.app.allow", "input.user is not available", id="no input"),
    ],
)
async def test_what_can_never_be_answered_is_refused(
    admit: RegoAdmission, module: str, entrypoint: str, says: str
) -> None:
    (problem,) = await refusals(admit, revision_of(rego_yaml(module, entrypoint=entrypoint)))
    assert (problem.file, problem.field) == ("p.yaml", "spec.module")
    assert says in problem.given


async def test_all_refused_policies_are_told_at_once(admit: RegoAdmission) -> None:
    revision = revision_of(rego_yaml("nonsense", "a"), rego_yaml(app("allow := true"), "b"), rego_yaml("nonsense", "c"))
    problems = await refusals(admit, revision)
    assert [problem.field for problem in problems] == ["spec.module"] * 2
    assert problems[0].line < problems[1].line


async def test_a_refused_policy_is_refused_again(admit: RegoAdmission) -> None:
    revision = revision_of(rego_yaml("nonsense"))
    assert await refusals(admit, revision) == await refusals(admit, revision)


# Tiers ----------------------------------------------------------------------------------------------------------------

CHECK_ONLY = app("allow if count(numbers.range(1, 9)) == 9")


@pytest.mark.parametrize(
    ("module", "more", "tier", "why", "questions"),
    [
        (app("allow := true"), {}, "sidecar", "sidecars admit it", 2),
        (app("allow := true"), {"tier": "check"}, "check", "it asks for it", 2),
        (app("allow := true"), {"timeout": "51ms"}, "check", "51ms is given, at most 50ms in the sidecar tier", 2),
        (CHECK_ONLY, {}, "check", "RegoPolicy shop/rules:2: the built-in numbers.range is outside the sidecar tier", 3),
    ],
)
async def test_a_policy_is_admitted_where_it_can_be_and_each_question_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, module: str, more: dict[str, Any], tier: str, why: str, questions: int
) -> None:
    asked: list[Question] = []
    ask = RegoAdmission._ask

    async def counted(self: RegoAdmission, question: Question, document: bytes) -> Any:
        asked.append(question)
        return await ask(self, question, document)

    monkeypatch.setattr(RegoAdmission, "_ask", counted)
    async with RegoAdmission() as admit:
        for _ in range(2):
            (source,) = (await admit.check(revision_of(rego_yaml(module, **more)).snapshot)).rego.values()
            assert (source.tier, source.read) == (tier, frozenset({("app", "allow")}))
            assert source.tier_reason.startswith(why)
    assert len(asked) == questions


async def test_a_policy_that_no_tier_admits_is_refused_as_the_check_tier_does(admit: RegoAdmission) -> None:
    (problem,) = await refusals(admit, revision_of(rego_yaml(app("allow if http.send({})"))))
    assert "for what the check tier admits" in problem.allowed


# Hostile policies -----------------------------------------------------------------------------------------------------


def repeated(line: str) -> str:
    """As much of `line` as a module may hold."""
    return "package app\nallow := true\n" + line * (250_000 // len(line))


TOO_SLOW = repeated(f"r contains {'[' * 12}1{']' * 12}\n")
TOO_DEEP = f"package app\nx := {('-' * 1000 + chr(10)) * 200}1\nallow := true\n"


def with_a_module_that_is(module: str) -> Revision:
    """A hostile policy, a bad one and a good one."""
    documents = rego_yaml(None, "a", files=["a.rego"]), rego_yaml("nonsense", "b"), rego_yaml(app("allow := true"), "c")
    return revision_of(*documents, files={"a.rego": module.encode()})


async def test_a_policy_that_takes_too_long_is_refused_and_the_next_is_checked(
    admit: RegoAdmission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "TIME_LIMIT_SECONDS", 2.0)
    hostile, bad = await refusals(admit, with_a_module_that_is(TOO_SLOW))
    assert (hostile.file, hostile.field) == ("p.yaml", "spec")
    assert "takes longer than" in hostile.given
    assert "package" in bad.given


async def test_a_policy_that_the_worker_does_not_survive_is_refused_and_the_next_is_checked(
    admit: RegoAdmission,
) -> None:
    await admit.check(revision_of(rego_yaml(app("allow := true"))).snapshot)  # so that there is a worker
    checking = asyncio.create_task(refusals(admit, with_a_module_that_is(TOO_SLOW)))
    await asyncio.sleep(0)  # it is asked now
    for worker in descendants(os.getpid()):
        os.kill(worker, signal.SIGKILL)
    hostile, bad = await checking
    assert (hostile.file, hostile.field) == ("p.yaml", "spec")
    assert "ended the process" in hostile.given
    assert "package" in bad.given


async def test_a_policy_that_nests_too_deep_for_the_worker_is_refused_before_it_is_parsed(admit: RegoAdmission) -> None:
    hostile, bad = await refusals(admit, with_a_module_that_is(TOO_DEEP))
    assert (hostile.file, hostile.line) == ("a.rego", 201)
    assert "operators in a row" in hostile.given
    assert "package" in bad.given


async def test_a_module_that_is_too_long_is_refused(admit: RegoAdmission) -> None:
    files = {"a.rego": app("allow := true", "# " + "x" * 262_144).encode()}
    (problem,) = await refusals(admit, revision_of(rego_yaml(None, files=["a.rego"]), files=files))
    assert (problem.file, problem.line) == ("a.rego", 1)
    assert "at most 262144 are allowed" in problem.given


async def test_a_check_that_is_cancelled_does_not_leave_its_answer_to_the_next(admit: RegoAdmission) -> None:
    await admit.check(revision_of(rego_yaml(app("allow := true"))).snapshot)
    for n in range(20):
        good = revision_of(rego_yaml(app(f"allow := {n} == {n}")))
        check = asyncio.ensure_future(admit.check(good.snapshot))
        await asyncio.sleep(0)
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        (problem,) = await refusals(admit, revision_of(rego_yaml(f"nonsense{n}")))
        assert problem.given
