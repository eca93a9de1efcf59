from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peltast.policies.kinds.registry import read_resource
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.sources.documents import MAX_DEPTH, MAX_NODES, Document, field_text, parse


def one(text: str | bytes) -> Document:
    (document,) = parse("f.yaml", text if isinstance(text, bytes) else text.encode())
    assert isinstance(document, Document), document
    return document


def refusal(text: str | bytes) -> Problem:
    *_, problem = parse("f.yaml", text if isinstance(text, bytes) else text.encode())
    assert isinstance(problem, Problem), problem
    return problem


# Values and lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: b", {"a": "b"}),
        ("a: 1", {"a": 1}),
        ("a: '1'", {"a": "1"}),
        ("a: 1.5", {"a": 1.5}),
        ("a: true", {"a": True}),
        ("a: 'true'", {"a": "true"}),
        ("a: ~", {"a": None}),
        ("a:", {"a": None}),
        ("a: 2026-01-01", {"a": "2026-01-01"}),
        ("1: a", {"1": "a"}),
        ("true: a", {"true": "a"}),
        ("- a\n- [b, {c: d}]", ["a", ["b", {"c": "d"}]]),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x 1\nb: *x", {"a": 1, "b": 1}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("<<: {a: b}", {"<<": {"a": "b"}}),
        ('{"a": ["\\u00e9"]}', {"a": ["é"]}),
        ("a: é", {"a": "é"}),
        ("\ufeffa: b", {"a": "b"}),
    ],
)
def test_yaml_is_read_as_plain_values(text: str, value: object) -> None:
    assert one(text).value == value


def test_every_value_knows_its_line() -> None:
    document = one("# comment\na:\n  b:\n\n    - c: 1\n    - d: |\n        text\n      e: 2\n")
    lines = {field_text(path): document.line(path) for path in document.lines}
    assert lines == {
        "": 2,
        "a": 3,
        "a.b": 5,
        "a.b[0]": 5,
        "a.b[0].c": 5,
        "a.b[1]": 6,
        "a.b[1].d": 6,
        "a.b[1].e": 8,
    }


def test_what_is_missing_is_placed_where_it_is_missed() -> None:
    document = one("a:\n  b:\n    c: 1\n")
    assert document.line(("a", "b", "x", "y")) == document.line(("a", "b")) == 3


def test_lines_of_later_documents_count_from_the_start_of_the_file() -> None:
    first, second = parse("f.yaml", b"a: 1\n---\nb: 2\n")
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert (first.line(("a",)), second.line(("b",))) == (1, 3)


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "---\n---\n...\n"])
def test_nothing_is_read_from_nothing(text: str) -> None:
    assert [each for each in parse("f.yaml", text.encode()) if isinstance(each, Problem) or each.value] == []


def test_anchors_do_not_outlive_their_document() -> None:
    first, second = parse("f.yaml", b"a: &x 1\n---\nb: *x\n")
    assert isinstance(first, Document)
    assert isinstance(second, Problem)
    assert second.line == 3


def test_documents_before_a_problem_are_given() -> None:
    good, bad = parse("f.yaml", b"a: 1\n---\nb: [\n")
    assert isinstance(good, Document)
    assert isinstance(bad, Problem)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        pytest.param("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "b", "c is given twice; the first is on line 3", id="duplicate"),
        pytest.param("a: 1\n'a': 2\n", 2, "", "a is given twice", id="duplicate, quoted"),
        pytest.param("a:\nb:\na:\n", 3, "", "a is given twice; the first is on line 1", id="duplicate of nothing"),
        pytest.param("a: 1\nb: !!python/object:os.system x\n", 2, "", "tags are not allowed", id="tag on a scalar"),
        pytest.param("a:\n  b: !!python/tuple [1]\n", 2, "a", "tags are not allowed", id="tag on a list"),
        pytest.param("a: !x {b: c}\n", 1, "", "tags are not allowed", id="tag on a mapping"),
        pytest.param("!x a: b\n", 1, "", "tags are not allowed", id="tag on a member name"),
        pytest.param("a: !!str 1\n", 1, "", "tags are not allowed", id="standard tag"),
        pytest.param("a: *x\n", 1, "", "the alias *x", id="alias of nothing"),
        pytest.param("a: &x\n  b: *x\n", 2, "a", "the alias *x", id="alias of itself"),
        pytest.param("? [a]\n: b\n", 1, "", "member names must be text", id="list as a member name"),
        pytest.param("a: &x 1\n? *x\n: b\n", 2, "", "member names must be text", id="alias as a member name"),
        pytest.param("a: [\n", 2, "", "not YAML", id="no end"),
        pytest.param("a: b: c\n", 1, "", "not YAML", id="two colons"),
        pytest.param("a:\n\tb: c\n", 2, "", "not YAML", id="tab"),
        pytest.param("a: 1\n@b: c\n", 2, "", "not YAML", id="reserved character"),
        pytest.param(b"a: \xff\xfe\n", 0, "", "not YAML", id="not UTF-8"),
        pytest.param(b"a: \x00\n", 0, "", "not YAML", id="NUL"),
        pytest.param("a: 0x_\n", 0, "", "not YAML", id="number without digits"),
        pytest.param("a: " + "9" * 5000 + "\n", 0, "", "not YAML", id="number beyond numbers"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_line(text: str | bytes, line: int, field: str, says: str) -> None:
    problem = refusal(text)
    assert (problem.file, problem.line, problem.field) == ("f.yaml", line, field)
    assert says in str(problem)


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_nesting_has_a_bound() -> None:
    one("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert f"at most {MAX_DEPTH} are allowed" in refusal("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)).allowed
    assert "nested" in refusal("[" * 1_000_000).given
    assert "nested" in refusal("{a: " * 100_000).given


def test_a_billion_laughs_are_refused() -> None:
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    problem = refusal("\n".join(lines))
    assert f"more than {MAX_NODES} values" in problem.given
    assert problem.line == 6


def test_many_values_are_refused() -> None:
    assert f"more than {MAX_NODES} values" in refusal("[" + "0," * MAX_NODES + "0]").given


def aliases_in_aliases(links: int) -> str:
    """Each value nests the one before it as deep as is allowed, by way of an alias."""
    opened, closed = "[" * 60, "]" * 60
    lines = [f"  - &a0 {opened}{closed}"]
    lines += [f"  - &a{n} {opened}*a{n - 1}{closed}" for n in range(1, links)]
    return "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n" + "\n".join(lines) + "\n"


def test_aliases_do_not_nest_deeper_than_the_bound() -> None:
    problem = refusal(aliases_in_aliases(80))
    assert (problem.line, problem.given) == (6, f"values are nested more than {MAX_DEPTH} deep")


def test_an_alias_may_be_nested_as_deep_as_the_bound() -> None:
    deep = "a: &a " + "[" * 60 + "]" * 60 + "\n"
    assert one(deep + "b: [[[*a]]]\n").value
    assert "nested" in refusal(deep + "b: [[[[*a]]]]\n").given


# Garbage --------------------------------------------------------------------------------------------------------------

PIECES = (
    "a",
    "b",
    ": ",
    "- ",
    "\n",
    "  ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&x ",
    "*x",
    "!t ",
    "!!int ",
    "|",
    ">",
    "'",
    '"',
    "#",
)
ODD_PIECES = (
    "? ",
    "---\n",
    "...\n",
    "%YAML 1.1\n",
    "<<",
    "~",
    "1",
    "0x",
    ".nan",
    "\t",
    "\\",
    "é",
    "\x00",
    "\u2028",
    "\ud7ff",
)
HEAD_PIECES = ("apiVersion: v1\n", "kind: Service\n", "metadata: ", "spec: ")
YAML_PIECES = st.sampled_from([*PIECES, *ODD_PIECES, *HEAD_PIECES])


def holds(content: bytes) -> None:
    for each in parse("f.yaml", content):
        assert isinstance(each, Document | Problem)
        if isinstance(each, Problem):
            assert str(each).startswith("f.yaml")
            assert each.given
            assert each.allowed
            continue
        assert all(line > 0 for line in each.lines.values())
        with contextlib.suppress(InvalidConfiguration):
            read_resource(each)


@given(st.lists(YAML_PIECES, max_size=30).map("".join))
def test_pieces_of_yaml_are_read_or_refused(text: str) -> None:
    holds(text.encode())


@given(st.binary(max_size=200))
def test_bytes_are_read_or_refused(content: bytes) -> None:
    holds(content)
