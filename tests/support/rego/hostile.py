"""Policies that were written to hurt whoever evaluates them."""

# ruff: noqa: E501 (one policy a line)

from __future__ import annotations

from dataclasses import dataclass

A = 'input.attributes.request.http.headers["x-a"]'
B = 'input.attributes.request.http.headers["x-b"]'

OUTSIDE = "outside the sidecar tier"
TOO_LARGE = "too large to be compared"


@dataclass(frozen=True)
class Hostile:
    """One policy, with what the client sends it."""

    name: str
    rules: str
    """Those of the package `p`; `p.allow` is asked for."""
    refused: str | None = None
    """What the sidecar tier says when the policy is loaded; it is bounded at run where there is none."""
    refused_by_both: bool = False
    a: str = "a"
    b: str = "b"

    @property
    def module(self) -> str:
        """The whole module."""
        return f"package p\n\nimport rego.v1\n\n{self.rules}\n"

    @property
    def headers(self) -> dict[str, str]:
        """The client's."""
        return {"x-a": self.a, "x-b": self.b}


def _steps(count: int, first: str, step: str, condition: str) -> str:
    """A rule in which each of `count` steps makes something of the last, `X`; the condition is about the last."""
    steps = [f"\tx{n} := {step.replace('X', f'x{n - 1}')}" for n in range(1, count + 1)]
    return "\n".join(["allow if {", f"\tx0 := {first}", *steps, f"\t{condition.replace('X', f'x{count}')}", "}"])


def _condition(condition: str) -> str:
    return f"allow if {{\n\t{condition}\n}}"


_LONG_LIST = ", ".join([A] * 1000)

HOSTILE = [
    # Patterns
    Hostile("nested quantifiers", _condition(f"regex.match(`^(a+)+$`, {A})"), a="a" * 60_000 + "b"),
    Hostile("quadratic pattern", _condition(f"regex.match(`(a*)*(a*)*(a*)*(a*)*b`, {A})"), a="a" * 60_000),
    Hostile("many states", _condition(f"regex.match(`(a|b)*a(a|b){{500}}c`, {A})"), a="abbabaab" * 7500),
    Hostile("pattern too large", _condition(f"regex.match(`((a{{0,99}}){{0,99}}){{0,99}}$`, {A})"), a="a" * 60_000),
    Hostile("pattern of the client's", _condition(f"regex.match({A}, {B})"), "its pattern must be a literal", a="(a*)*" * 9),
    Hostile("glob of the client's", _condition(f"glob.match({A}, [], {B})"), OUTSIDE, a="{a,b}*" * 9000),
    Hostile("template", _condition(f'regex.template_match({A}, {B}, "{{", "}}")'), OUTSIDE, a="{" * 30_000),
    # Built-ins that make much of little
    Hostile("range", _condition("count(numbers.range(1, 100000000000000)) > 1"), OUTSIDE),
    Hostile("range with steps", _condition("count(numbers.range_step(1, 100000000000000, 2)) > 1"), OUTSIDE),
    Hostile("wide format", _condition('sprintf("%200000000d", [1]) != ""'), "its format must be a literal"),
    Hostile("format of the client's", _condition(f"sprintf({A}, [1])"), "its format must be a literal", a="%999999999d"),
    Hostile("long format", _condition(f"sprintf(\"{'%s' * 1000}\", [{_LONG_LIST}]) != \"\""), a="a" * 60_000),
    Hostile("long list", _condition(f'concat("", [{_LONG_LIST}]) != ""'), a="a" * 60_000),
    Hostile("units", _condition('units.parse("1e1000000000") > 1'), OUTSIDE),
    Hostile("bytes", _condition('units.parse_bytes("1e1000000000K") > 1'), OUTSIDE),
    Hostile("networks", _condition('count(net.cidr_expand("::/0")) > 1'), OUTSIDE),
    Hostile("shift", _condition("bits.lsh(1, 10000000000) > 1"), OUTSIDE),
    Hostile("paths", _condition("""g := {x: ys | some x in numbers.range(1, 18); ys := numbers.range(1, 18)}
\tcount(graph.reachable_paths(g, {1})) > 1"""), OUTSIDE),
    Hostile("walk", _condition(f'xs := [{{"a": [{A}]}} | some c in split({A}, "")]\n\tcount([p | walk(xs, [p, v])]) > 1'),
            OUTSIDE, a="a" * 60_000),
    Hostile("times", _condition(f'time.parse_ns({A}, "x") > 1'), OUTSIDE, a="2006-01-02" * 6000),
    # Built-ins that take more than the size of what they are given
    Hostile("trim", _condition(f'trim({A}, {B}) == ""'), a="b" * 30_000, b="a" * 29_999 + "b"),
    Hostile("trim, beyond ASCII", _condition(f'trim_left({A}, {B}) == ""'), a="字" * 9000, b="節" * 9000 + "字"),
    Hostile("prefixes", _condition(f'strings.any_prefix_match(split({A}, ","), split({B}, ","))'),
            a="ab," * 10_000, b="ac," * 10_000),
    Hostile("suffixes", _condition(f'strings.any_suffix_match(split({A}, ","), split({B}, ","))'),
            a="ba," * 10_000, b="ca," * 10_000),
    Hostile("search", _condition(f"contains({A}, {B})"), a="a" * 40_000, b="a" * 20_000 + "b"),
    Hostile("sort", _condition(f'sort(split({A}, "")) == []'), a="ba" * 30_000),
    # Numbers
    Hostile("squares", _steps(60, "3", "X * X", "X != 0"), "time limit"),
    Hostile("squares of the client's", _steps(60, f"to_number({A})", "X * X", "X != 0"), a="9" * 60_000),
    Hostile("long division", _condition(f"to_number({A}) % to_number({B}) == 0"), a="9" * 60_000, b="7" * 30_000),
    Hostile("great exponent", _condition(f"to_number({A}) > 1"), a="1e999999999"),
    # Values that grow
    Hostile("texts doubled", _steps(60, A, 'concat("", [X, X])', 'X != ""'), a="a" * 60_000),
    Hostile("formats doubled", _steps(60, A, 'sprintf("%s%s", [X, X])', 'X != ""'), a="a" * 60_000),
    Hostile("arrays doubled", _steps(60, f"[{A}]", "array.concat(X, X)", "X != []"), a="a" * 60_000),
    Hostile("arrays doubled and joined", _steps(14, f"[{A}]", "array.concat(X, X)", 'concat("", X) != ""'), a="a" * 60_000),
    Hostile("prints in a loop", _condition(f'some x in split({A}, "")\n\tprint({A})\n\tx == "b"'), a="a" * 60_000),
    Hostile("texts doubled and printed", _steps(60, A, 'concat("", [X, X])', "print(X)"), a="a" * 60_000),
    Hostile("structures doubled and printed", _steps(60, "1", "[X, X]", "print(X)"), TOO_LARGE),
    Hostile("structures doubled", _steps(60, "1", "[X, X]", "X != []"), TOO_LARGE),
    Hostile("structures doubled and written", _steps(60, "1", "[X, X]", 'sprintf("%v", [X]) != ""'), TOO_LARGE),
    Hostile("structures doubled by rules", "\n".join([
        "x0 := 1", *(f'x{n} := {{"a": x{n - 1}, "b": x{n - 1}}}' for n in range(1, 40)), "allow if x39 == x38",
    ]), TOO_LARGE),
    Hostile("a structure as the answer", _steps(40, "1", "[X, X]", "X != 1").replace("allow if", "allow := x40 if"), TOO_LARGE),
    Hostile("deep structures", _steps(1500, "1", "[X]", "X != []"), TOO_LARGE),
    Hostile("loops in loops", _condition(f"""xs := split({A}, "")
\tcount([1 | some x in xs; some y in xs; some z in xs; x != z]) == 1"""), a="ab" * 30_000),
    Hostile("loops that find nothing", _condition("; ".join(f"some x{n} in [1, 2, 3, 4, 5, 6, 7, 8, 9]" for n in range(30)) + "; x0 == 77"), "time limit"),
    Hostile("every in every", _condition(f'xs := split({A}, "")\n\tevery x in xs {{ every y in xs {{ x == y }} }}'), a="a" * 60_000),
    # Recursion
    Hostile("direct recursion", "allow if allow", "recursion", refused_by_both=True),
    Hostile("mutual recursion", "allow if other\nother if allow", "recursion", refused_by_both=True),
    Hostile("recursion of functions", "allow if f(1)\nf(x) := g(x)\ng(x) := f(x)", "recursion", refused_by_both=True),
    Hostile("recursion by a found name", "allow if data.p[_]", "recursion", refused_by_both=True),
    Hostile("a long chain", "\n".join([*(f"r{n} if r{n + 1}" for n in range(2000)), "r2000 := true", "allow if r0"]),
            "use each other in a chain", refused_by_both=True),
    # Source
    Hostile("nested literals", f"allow := {'[' * 20}{']' * 20}", "brackets are nested 20 deep", refused_by_both=True),
    Hostile("nested objects", f"allow := {'{1: ' * 20}1{'}' * 20}", "brackets are nested 20 deep", refused_by_both=True),
    Hostile("a long sum", f"allow := 1{' + 1' * 5000}", "operators in a row", refused_by_both=True),
    Hostile("a sum over lines", "allow := 1" + " +\n1" * 5000, "operators in a row", refused_by_both=True),
    Hostile("signs", f"allow := {'-' * 200_000}1", "operators in a row", refused_by_both=True),
    Hostile("a long reference", f"allow := data{'[0]' * 80_000}", "operators in a row", refused_by_both=True),
    Hostile("a long name", f"allow{'.a' * 100_000} := 1", "operators in a row", refused_by_both=True),
    Hostile("memberships", f"allow if 1{' in x' * 50_000}", "operators in a row", refused_by_both=True),
    Hostile("expressions nested", f"allow := 1{' + 1' * 100}", "nested more than 64 deep", refused_by_both=True),
    Hostile("a large module", "allow := true\n" + "# comment\n" * 30_000, "at most 262144 are allowed", refused_by_both=True),
]  # fmt: skip
