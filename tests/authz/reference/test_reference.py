"""The engine against a plain evaluator of AuthorizationPolicy: written from Istio's reference, as slow and as short as
possible, and sharing no code with compiler or engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Values = list[str]
Attributes = dict[str, str | None]

PORTS = {80: "8080", 90: "9090"}


# The reference --------------------------------------------------------------------------------------------------------


def value_matches(pattern: str, value: str | None) -> bool:
    if value is None:
        return False
    if pattern == "*":
        return True
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value == pattern


def field_matches(wanted: Values | None, unwanted: Values | None, value: str | None) -> bool:
    if wanted is not None and not any(value_matches(pattern, value) for pattern in wanted):
        return False
    return unwanted is None or not any(value_matches(pattern, value) for pattern in unwanted)


FIELDS = {
    "principals": "principal",
    "namespaces": "namespace",
    "methods": "method",
    "paths": "path",
    "ports": "port",
}


def part_matches(part: dict[str, Values], attributes: Attributes) -> bool:
    return all(
        field_matches(part.get(field), part.get("not" + field.capitalize()), attributes[attribute])
        for field, attribute in FIELDS.items()
    )


def rule_matches(rule: dict[str, Any], attributes: Attributes) -> bool:
    if "from" in rule and not any(part_matches(each["source"], attributes) for each in rule["from"]):
        return False
    if "to" in rule and not any(part_matches(each["operation"], attributes) for each in rule["to"]):
        return False
    return all(
        field_matches(each.get("values"), each.get("notValues"), attributes.get(each["key"]))
        for each in rule.get("when", [])
    )


def reference(policies: list[dict[str, Any]], attributes: Attributes) -> str:
    def some(action: str) -> bool:
        rules = [rule for spec in policies if spec["action"] == action for rule in spec["rules"]]
        return any(rule_matches(rule, attributes) for rule in rules)

    if some("DENY"):
        return "deny_rule"
    if some("ALLOW"):
        return "allow_rule"
    return "no_allow_rule" if any(spec["action"] == "ALLOW" for spec in policies) else "no_allow_policy"


# Policies and requests that often meet --------------------------------------------------------------------------------

NAMESPACES = ["a", "ab", "b", "ba"]
PRINCIPALS = [f"t/ns/{namespace}/sa/{account}" for namespace in NAMESPACES for account in ("x", "xy")]
METHODS = ["GET", "PUT", "POST", "get"]
PATHS = ["/", "/a", "/a/b", "/ab", "/b/a", "/a/b/"]
HEADER_VALUES = ["", "a", "ab", "ba", "*", "a*b"]
HEADERS = ["x-a", "x-b"]


def patterns(values: list[str]) -> st.SearchStrategy[Values]:
    whole = [value for value in values if value]
    prefixes = {value[:cut] + "*" for value in whole for cut in range(1, len(value))}
    suffixes = {"*" + value[cut:] for value in whole for cut in range(1, len(value))}
    pattern = st.one_of(*(st.sampled_from(sorted(each)) for each in (whole, prefixes, suffixes, ["*"])))
    return st.lists(pattern, min_size=1, max_size=2)


def part(name: str, fields: dict[str, st.SearchStrategy[Values]]) -> st.SearchStrategy[list[Any]]:
    both = fields | {"not" + field.capitalize(): values for field, values in fields.items()}
    single = st.one_of(*(st.fixed_dictionaries({field: values}) for field, values in both.items()))
    double = st.builds(lambda one, other: {**one, **other}, single, single)
    one = st.one_of(single, double).map(lambda given: {name: given})
    return st.lists(one, min_size=1, max_size=2)


def condition(key: str, values: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    given = st.fixed_dictionaries({}, optional={"values": patterns(values), "notValues": patterns(values)})
    return given.filter(bool).map(lambda given: {"key": key, **given})


ports = st.lists(st.sampled_from(["8080", "9090", "80"]), min_size=1, max_size=2)
sources = part("source", {"principals": patterns(PRINCIPALS), "namespaces": patterns(NAMESPACES)})
operations = part("operation", {"methods": patterns(METHODS), "paths": patterns(PATHS), "ports": ports})
conditions = st.lists(
    st.one_of([condition(f"request.headers[{name}]", HEADER_VALUES) for name in HEADERS]), min_size=1, max_size=2
)
parts = {"from": sources, "to": operations, "when": conditions}
rules = st.one_of(
    *(st.fixed_dictionaries({name: part}) for name, part in parts.items()), st.fixed_dictionaries({}, optional=parts)
)
specs = st.one_of(
    st.fixed_dictionaries({"action": st.just("ALLOW"), "rules": st.lists(rules, max_size=3)}),
    st.fixed_dictionaries({"action": st.just("DENY"), "rules": st.lists(rules, min_size=1, max_size=3)}),
)
requests = st.fixed_dictionaries(
    {
        "principal": st.one_of(st.none(), st.sampled_from(PRINCIPALS)),
        "method": st.sampled_from(METHODS),
        "path": st.sampled_from(PATHS),
        "port": st.sampled_from([80, 90]),
        "headers": st.dictionaries(st.sampled_from(HEADERS), st.sampled_from(HEADER_VALUES)),
    }
)


def attributes_of(request: dict[str, Any]) -> Attributes:
    principal: str | None = request["principal"]
    return {
        "principal": principal,
        "namespace": principal.split("/")[2] if principal else None,
        "method": request["method"],
        "path": request["path"],
        "port": PORTS[request["port"]],
        **{f"request.headers[{name}]": value for name, value in request["headers"].items()},
    }


def engine_fields(request: dict[str, Any]) -> dict[str, Any]:
    return {
        "source_principal": f"spiffe://{request['principal']}" if request["principal"] else None,
        "method": request["method"],
        "path": request["path"],
        "destination_port": request["port"],
        "headers": list(request["headers"].items()),
    }


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(specs, max_size=4), st.lists(requests, min_size=1, max_size=8))
def test_the_engine_decides_as_the_reference_does(
    mesh: Callable[..., Any], policy: Callable[..., str], given_specs: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> None:
    made = mesh(*(policy(spec, name=f"p{index}") for index, spec in enumerate(given_specs)))
    for request in [*asked, *asked]:  # the second time from memory
        decision = made.decide(**engine_fields(request))
        wanted = reference(given_specs, attributes_of(request))
        assert decision.reason == wanted
        assert decision.allowed is (wanted in ("allow_rule", "no_allow_policy"))


def shadow_of(tried: list[dict[str, Any]], attributes: Attributes) -> dict[str, str]:
    """What policies on trial say: each of the two sets as if it were enforced alone."""
    deny, allow = ([spec for spec in tried if spec["action"] == action] for action in ("DENY", "ALLOW"))
    shadow = {}
    if deny:
        shadow["dry_run_deny"] = "deny" if reference(deny, attributes) == "deny_rule" else "allow"
    if allow:
        shadow["dry_run_allow"] = "allow" if reference(allow, attributes) == "allow_rule" else "deny"
    return shadow


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(specs, max_size=2), st.lists(specs, min_size=1, max_size=3), st.lists(requests, min_size=1, max_size=8))
def test_policies_on_trial_change_nothing_and_say_what_they_would(
    mesh: Callable[..., Any],
    policy: Callable[..., str],
    enforced: list[dict[str, Any]],
    tried: list[dict[str, Any]],
    asked: list[dict[str, Any]],
) -> None:
    made = mesh(
        *(policy(spec, name=f"enforced{index}") for index, spec in enumerate(enforced)),
        *(policy(spec, name=f"tried{index}", dry_run=True) for index, spec in enumerate(tried)),
    )
    for request in [*asked, *asked]:  # the second time from memory
        decision, attributes = made.decide(**engine_fields(request)), attributes_of(request)
        assert decision.reason == reference(enforced, attributes)
        effects = {name: decision.shadow[name] for name in ("dry_run_deny", "dry_run_allow") if name in decision.shadow}
        assert effects == shadow_of(tried, attributes)
