from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.authz.quota.descriptors import load_limits
from peltast.authz.quota.limits import Domain, Entry, Limit, Unit, find
from peltast.policies.problems import InvalidConfiguration

SHOP = """\
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 10}
    descriptors:
      - key: path
        value: /pay
        rate_limit: {unit: HOUR, requests_per_unit: 3, name: pay, replaces: [{name: all}]}
      - key: path
        value: /pub*
        rate_limit: {unlimited: true}
      - key: path
        shadow_mode: true
        detailed_metric: true
        rate_limit: {unit: week, requests_per_unit: 7}
  - key: user
    value: jo
    rate_limit: {unit: second, requests_per_unit: 0, name: all}
  - key: admin
"""


def load(text: str) -> Domain:
    (domain,) = load_limits({"shop.yaml": text.encode()}).values()
    return domain


@pytest.mark.parametrize(
    ("entries", "limit"),
    [
        ([("user", "al")], Limit(10, Unit.MINUTE)),
        ([("user", "")], Limit(10, Unit.MINUTE)),
        ([("user", "jo")], Limit(0, Unit.SECOND, "all")),
        ([("user", "jo"), ("path", "/pay")], None),
        ([("user", "al"), ("path", "/pay")], Limit(3, Unit.HOUR, "pay", frozenset({"all"}))),
        ([("user", "al"), ("path", "/public")], Limit(0, None)),
        ([("user", "al"), ("path", "/else")], Limit(7, Unit.WEEK, shadow_mode=True)),
        ([("user", "al"), ("path", "/else"), ("more", "")], None),
        ([("path", "/pay")], None),
        ([("admin", "al")], None),
        ([], None),
    ],
)
def test_the_most_specific_descriptor_of_exactly_these_entries_counts(
    entries: list[Entry], limit: Limit | None
) -> None:
    assert find(load(SHOP), entries) == limit


def with_limit(text: str) -> str:
    return f"domain: shop\ndescriptors:\n  - key: user\n    rate_limit:\n      {text}\n"


def named(*limits: tuple[str, str]) -> str:
    limit = "rate_limit: {unit: day, requests_per_unit: 1, name: NAME, replaces: [{name: OTHER}]}"
    lines = [f"  - {{key: a, value: NAME, {limit}}}\n".replace("NAME", a).replace("OTHER", b) for a, b in limits]
    return "domain: shop\ndescriptors:\n" + "".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a.yaml: 0 documents are given; a file is one document, of a domain"),
        ("- 1\n", "a.yaml:1: a list or a scalar is given; an object with domain and descriptors is expected"),
        ("domain: a\n---\ndomain: b\n", "a.yaml: 2 documents are given; a file is one document, of a domain"),
        ("descriptors: []\n", "a.yaml:1: domain: nothing is given; the field is required"),
        ('domain: ""\n', 'a.yaml:1: domain: "" is given; string should have at least 1 character'),
        ("domain: shop\nlimits: []\n", "a.yaml:2: limits: unknown field; known are domain, descriptors"),
        (
            "domain: shop\ndescriptors:\n  - value: a\n",
            "a.yaml:3: descriptors[0].key: nothing is given; the field is required",
        ),
        (
            "domain: shop\ndescriptors:\n  - key: a\n    value: 010\n",
            "a.yaml:4: descriptors[0].value: 8 is given; input should be a valid string",
        ),
        (
            "domain: shop\ndescriptors:\n  - key: a\n    share_threshold: true\n",
            "a.yaml:4: descriptors[0].share_threshold: not taken here; "
            "Peltast does not have it: the limit would be another one than is written",
        ),
        (
            with_limit("unit: fortnight\n      requests_per_unit: 1"),
            "a.yaml:5: descriptors[0].rate_limit.unit: 'fortnight' is given; "
            "known are second, minute, hour, day, week, month, year",
        ),
        (
            with_limit("requests_per_unit: 1"),
            "a.yaml:5: descriptors[0].rate_limit.unit: nothing is given; "
            "known are second, minute, hour, day, week, month, year",
        ),
        (
            with_limit("unit: day"),
            "a.yaml:5: descriptors[0].rate_limit.requests_per_unit: nothing is given; "
            "the field is required, unless unlimited is true",
        ),
        (
            with_limit("{unit: day, requests_per_unit: -1}"),
            "a.yaml:5: descriptors[0].rate_limit.requests_per_unit: -1 is given; "
            "input should be greater than or equal to 0",
        ),
        (
            with_limit("{unit: day, requests_per_unit: 4294967296}"),
            "a.yaml:5: descriptors[0].rate_limit.requests_per_unit: 4294967296 is given; "
            "input should be less than or equal to 4294967295",
        ),
        (
            with_limit("{unit: day, unlimited: true}"),
            "a.yaml:5: descriptors[0].rate_limit.unit: 'day' is given; "
            "with unlimited: true there is neither unit nor number",
        ),
        (
            named(("one", "one")),
            "a.yaml:3: descriptors[0].rate_limit.replaces: 'one' is given; a limit replaces others, not itself",
        ),
        (
            named(("one", "two")),
            "a.yaml:3: descriptors[0].rate_limit.replaces: two is given; no limit of the domain has the name two",
        ),
        (
            named(("one", "two"), ("two", "three"), ("three", "one")),
            "a.yaml:4: descriptors[1].rate_limit.replaces: three is given; "
            "two is replaced by what it replaces, so that neither is in force",
        ),
        (
            "domain: shop\ndescriptors:\n  - key: a\n  - {key: b}\n  - {key: a}\n",
            "a.yaml:5: descriptors[2]: 'a' is given twice; key and value, joined by _, are once in a list",
        ),
        (
            "domain: shop\ndescriptors:\n  - {key: a_b}\n  - {key: a, value: b}\n",
            "a.yaml:4: descriptors[1]: 'a_b' is given twice; key and value, joined by _, are once in a list",
        ),
        (
            "domain: shop\ndescriptors: &all\n  - key: a\n    descriptors: *all\n",
            "a.yaml:4: descriptors[0]: the alias *all; an alias must follow the whole of what it repeats",
        ),
    ],
)
def test_a_problem_is_told_with_file_line_field_given_and_allowed(text: str, problem: str) -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        load_limits({"a.yaml": text.encode()})
    assert problem in [str(each) for each in refused.value.problems]


def test_nesting_is_bounded() -> None:
    text = "domain: shop\ndescriptors: " + "[{key: a, descriptors: " * 40 + "[]" + "}]" * 40
    with pytest.raises(InvalidConfiguration, match="nested more than 64 deep"):
        load_limits({"a.yaml": text.encode()})


def test_a_domain_is_written_in_one_file() -> None:
    with pytest.raises(InvalidConfiguration) as refused:
        load_limits({"b.yaml": b"domain: shop\n", "a.yaml": b"# first\ndomain: shop\n", "notes.rego": b""})
    assert [str(problem) for problem in refused.value.problems] == [
        "b.yaml:1: domain: 'shop' is given; a domain is written in one file, and a.yaml has it",
        "notes.rego: not a YAML file by its name; .yaml and .yml are read as descriptors",
    ]


@given(st.binary(max_size=200) | st.text(alphabet="domain: shopkeyrates{}[]-&*\n ", max_size=200).map(str.encode))
def test_anything_is_read_or_refused(text: bytes) -> None:
    try:
        told: object = load_limits({"a.yaml": text})
    except InvalidConfiguration as invalid:
        told = invalid.problems
    assert told
