"""Rego that nobody would write: modules and inputs made at random, within what both tiers admit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DATA: dict[str, Any] = {
    "numbers": [0, 1, 2, 3, 7, -1, 10, 2.5, -0.5, 1000],
    "texts": ["", "a", "ab", "b", "admin", "a.b", "é", "10", "-3", "x y", "Ab", "/a/b"],
    "mixed": [1, "a", None, True, [1, 2], {"a": 1}, "1", 2, [], {}],
    "rows": [
        {"id": 1, "name": "ada", "tags": ["a", "b"], "level": 3},
        {"id": 2, "name": "bob", "tags": [], "level": 1},
        {"id": 3, "name": "eve", "tags": ["b"], "level": 3, "gone": True},
    ],
    "by": {"ada": {"role": "admin"}, "bob": {"role": "user"}, "a": 1, "b": [1, 2]},
}

HTTP = "input.attributes.request.http"

# Built-ins of the sidecar tier by what they are called with and what they give: n(umber), t(ext), b(oolean), a(rray),
# s(et), o(bject), * anything.
_CALLS: Sequence[tuple[str, str, str]] = (
    ("abs", "n", "n"),
    ("array.concat", "aa", "a"),
    ("array.reverse", "a", "a"),
    ("array.slice", "ann", "a"),
    ("base64.decode", "t", "t"),
    ("base64.encode", "t", "t"),
    ("base64.is_valid", "t", "b"),
    ("base64url.decode", "t", "t"),
    ("base64url.encode", "t", "t"),
    ("base64url.encode_no_pad", "t", "t"),
    ("bits.and", "nn", "n"),
    ("bits.negate", "n", "n"),
    ("bits.or", "nn", "n"),
    ("bits.xor", "nn", "n"),
    ("ceil", "n", "n"),
    ("contains", "tt", "b"),
    ("count", "*", "n"),
    ("endswith", "tt", "b"),
    ("floor", "n", "n"),
    ("hex.decode", "t", "t"),
    ("hex.encode", "t", "t"),
    ("indexof", "tt", "n"),
    ("is_array", "*", "b"),
    ("is_boolean", "*", "b"),
    ("is_null", "*", "b"),
    ("is_number", "*", "b"),
    ("is_object", "*", "b"),
    ("is_set", "*", "b"),
    ("is_string", "*", "b"),
    ("lower", "t", "t"),
    ("max", "a", "*"),
    ("max", "s", "*"),
    ("min", "a", "*"),
    ("min", "s", "*"),
    ("object.filter", "oa", "o"),
    ("object.get", "ot*", "*"),
    ("object.get", "oa*", "*"),
    ("object.keys", "o", "s"),
    ("object.remove", "oa", "o"),
    ("object.remove", "os", "o"),
    ("object.union", "oo", "o"),
    ("round", "n", "n"),
    ("semver.compare", "tt", "n"),
    ("semver.is_valid", "t", "b"),
    ("sort", "a", "a"),
    ("sort", "s", "a"),
    ("split", "tt", "a"),
    ("startswith", "tt", "b"),
    ("strings.any_prefix_match", "tt", "b"),
    ("strings.any_prefix_match", "at", "b"),
    ("strings.any_suffix_match", "ta", "b"),
    ("strings.any_suffix_match", "st", "b"),
    ("strings.count", "tt", "n"),
    ("substring", "tnn", "t"),
    ("sum", "a", "n"),
    ("sum", "s", "n"),
    ("to_number", "*", "n"),
    ("trim", "tt", "t"),
    ("trim_left", "tt", "t"),
    ("trim_prefix", "tt", "t"),
    ("trim_right", "tt", "t"),
    ("trim_space", "t", "t"),
    ("trim_suffix", "tt", "t"),
    ("type_name", "*", "t"),
    ("upper", "t", "t"),
    ("urlquery.decode", "t", "t"),
    ("urlquery.encode", "t", "t"),
)


@dataclass(frozen=True)
class Generated:
    """A module, whose rule `answer` is asked for, and what it is asked about."""

    module: str
    inputs: Sequence[str]


def generate(seed: int) -> Generated:
    """The policy of this number, with inputs."""
    made = _Maker(random.Random(seed))
    return Generated(made.module(), [made.input() for _ in range(3)])


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.names: list[str] = []
        """Variables that have a value where the next expression is."""
        self.rules: list[str] = []
        """Rules that the next one may use: none uses itself."""
        self.functions: list[str] = []
        self.made = 0
        self.searches = True
        """Whether `[_]` may stand where the next expression is."""

    # Modules ----------------------------------------------------------------------------------------------------------

    def module(self) -> str:
        lines = ["package p", "", "import rego.v1", ""]
        for index in range(self.chance.randint(1, 4)):
            lines.append(self.rule(f"r{index}"))
            self.rules.append(f"r{index}")
            if self.chance.random() < 0.3:
                lines.append(self.function(f"f{index}"))
                self.functions.append(f"f{index}")
        lines.append("answer := [" + ", ".join(f"{{x | x := {rule}}}" for rule in self.rules) + "]")
        return "\n".join(lines) + "\n"

    def rule(self, name: str) -> str:
        self.names = []
        kind = self.chance.choice(["complete", "complete", "default", "else", "set", "object", "several"])
        body = self.body()
        value = self.expression("*", 2)
        match kind:
            case "set":
                return f"{name} contains {value} if {body}"
            case "object":
                key = self.expression("t", 1)
                return f"{name}[{key}] := {value} if {body}"
            case "default":
                return f"default {name} := {self.literal('*')}\n{name} := {value} if {body}"
            case "else":
                self.names = []
                return f"{name} := {value} if {body} else := {self.expression('*', 1)} if {self.body()}"
            case "several":
                first = f"{name} := true if {body}"
                self.names = []
                return f"{first}\n{name} := true if {self.body()}"
        return f"{name} := {value} if {body}"

    def function(self, name: str) -> str:
        self.names = ["given"]
        return f"{name}(given) := {self.expression('*', 2)} if {self.body()}"

    def body(self) -> str:
        before = list(self.names)
        statements = [self.statement() for _ in range(self.chance.randint(1, 3))]
        # OPA refuses names that nothing uses.
        unused = [name for name in self.names if name not in before]
        if unused:
            statements.append(f"count([{', '.join(unused)}]) > 0")
        return "{\n\t" + "\n\t".join(statements) + "\n}"

    def statement(self) -> str:
        kind = self.chance.choice(["assign", "assign", "some", "condition", "condition", "not", "every", "pattern"])
        match kind:
            case "assign":
                value = self.expression("*", 2)
                return f"{self.name()} := {value}"
            case "some":
                collection = self.found(lambda: self.expression(self.chance.choice("aso"), 1))
                if self.chance.random() < 0.3:
                    key = self.name()
                    return f"some {key}, {self.name()} in {collection}"
                return f"some {self.name()} in {collection}"
            case "not":
                return f"not {self.found(lambda: self.condition(1))}"
            case "every":
                collection = self.found(lambda: self.expression(self.chance.choice("as"), 1))
                return self.within(lambda name: f"every {name} in {collection} {{ {name} != 1; {self.condition(1)} }}")
            case "pattern":
                collection = self.expression("a", 1)
                return f"[{self.name()}, {self.name()}] = array.slice({collection}, 0, 2)"
        return self.condition(2)

    def condition(self, depth: int) -> str:
        kind = self.chance.choice("*nt")
        if self.chance.random() < 0.3:
            return f"{self.expression(kind, depth)} in {self.expression(self.chance.choice('as'), depth)}"
        # Objects come before sets in OPA and behind them here: what is ordered is likely none of both.
        operators = ["==", "!="] if kind == "*" else ["==", "!=", "<", "<=", ">", ">="]
        return f"{self.expression(kind, depth)} {self.chance.choice(operators)} {self.expression(kind, depth)}"

    # Expressions ------------------------------------------------------------------------------------------------------

    def expression(self, kind: str, depth: int) -> str:
        if kind == "*":
            kind = self.chance.choice("nntttbasoo")
        choices: list[Callable[[str, int], str]] = [self.given, self.given, lambda kind, _: self.literal(kind)]
        if depth > 0:
            choices += [self.call, self.call, self.composed, self.composed]
        if self.names:
            choices += [lambda _kind, _: self.chance.choice(self.names)] * 2
        if self.rules:
            choices += [lambda _kind, _: self.chance.choice(self.rules)]
        if self.functions and depth > 0:
            choices += [lambda _kind, depth: f"{self.chance.choice(self.functions)}({self.expression('*', depth - 1)})"]
        return self.chance.choice(choices)(kind, depth)

    def found(self, make: Callable[[], str]) -> str:
        """What holds nothing that must be searched for, as OPA wants it of what stands behind `not`."""
        searched, self.searches = self.searches, False
        made = make()
        self.searches = searched
        return made

    def given(self, kind: str, depth: int) -> str:
        """What is known only when the policy is asked: the kind is what it likely is."""
        made = self.looked_up(kind, depth)
        return made if self.searches else made.replace("[_]", f"[{self.chance.randint(0, 2)}]")

    def looked_up(self, kind: str, _: int) -> str:
        texts = [
            f"{HTTP}.method",
            f'{HTTP}.headers["x-a"]',
            "input.parsed_path[0]",
            "data.texts[_]",
            "data.rows[_].name",
        ]
        match kind:
            case "n":
                return self.chance.choice(
                    ["data.numbers[_]", f"data.numbers[{self.chance.randint(0, 9)}]", "data.rows[_].level"]
                )
            case "t":
                return self.chance.choice([*texts, f"data.texts[{self.chance.randint(0, 11)}]"])
            case "a":
                return self.chance.choice(
                    ["data.numbers", "data.texts", "data.rows", "data.mixed", "input.parsed_path", "data.rows[_].tags"]
                )
            case "o":
                return self.chance.choice(
                    ["data.by", "data.rows[_]", "input.parsed_query", f"data.rows[{self.chance.randint(0, 3)}]"]
                )
            case "s":
                return self.chance.choice(
                    ["{x | some x in data.texts}", "{x | x := data.numbers[_]}", "{x | some x in data.mixed}"]
                )
        return self.chance.choice(["data.mixed[_]", "data.rows[_].gone", "data.by[_]"])

    def literal(self, kind: str) -> str:
        if kind == "*":
            kind = self.chance.choice("ntbao")
        match kind:
            case "n":
                return self.chance.choice(["0", "1", "2", "-1", "3.5", "100"])
            case "t":
                return json.dumps(self.chance.choice(["", "a", "b", "ab", "é", "1", "A b"]))
            case "b":
                return self.chance.choice(["true", "false"])
            case "a":
                return self.chance.choice(["[]", "[1, 2]", '["a"]', "[null]"])
            case "s":
                return self.chance.choice(["set()", "{1, 2}", '{"a", "b"}'])
        return self.chance.choice(["{}", '{"a": 1}', '{"a": {"b": 2}}'])

    def call(self, kind: str, depth: int) -> str:
        fitting = [call for call in _CALLS if call[2] == kind]
        if not fitting:
            return self.composed(kind, depth)
        name, parameters, _ = self.chance.choice(fitting)
        return f"{name}({', '.join(self.expression(parameter, depth - 1) for parameter in parameters)})"

    def composed(self, kind: str, depth: int) -> str:
        def part(kind: str = "*") -> str:
            return self.expression(kind, depth - 1)

        match kind:
            case "n":
                return f"({part('n')} {self.chance.choice('+-*/%')} {part('n')})"
            case "t":
                template = self.chance.choice(["%s", "%v", "%d-%s", "<%v>"])
                values = ", ".join(part() for _ in range(template.count("%")))
                return f"sprintf({json.dumps(template)}, [{values}])"
            case "b":
                return f"({part()} {self.chance.choice(['==', '!='])} {part()})"
            case "a":
                return self.chance.choice([f"[{part()}, {part()}]", self.comprehension("[", "]", depth)])
            case "s":
                return self.chance.choice([
                    f"{{{part()}, {part()}}}",
                    self.comprehension("{", "}", depth),
                    f"({part('s')} {self.chance.choice('|&-')} {part('s')})",
                ])  # fmt: skip
        return self.chance.choice([f"{{{part('t')}: {part()}}}", self.comprehension("{k: ", "}", depth)])

    def comprehension(self, opening: str, closing: str, depth: int) -> str:
        collection = self.expression(self.chance.choice("aso"), depth - 1)

        def inside(name: str) -> str:
            if "k" in opening:
                return f"{{{name}: {self.expression('*', 0)} | some {name} in {collection}; {self.condition(0)}}}"
            term = f"[{name}, {self.expression('*', depth - 1)}]"
            return f"{opening}{term} | some {name} in {collection}; {self.condition(0)}{closing}"

        return self.within(inside)

    def within(self, make: Callable[[str], str]) -> str:
        """What has a name of its own, which nothing else sees."""
        outer = list(self.names)
        made = make(self.name())
        self.names = outer
        return made

    def name(self) -> str:
        self.made += 1
        self.names.append(f"v{self.made}")
        return self.names[-1]

    # Inputs -----------------------------------------------------------------------------------------------------------

    def input(self) -> str:
        texts = ["", "a", "ab", "admin", "GET", "10", "é"]
        http: dict[str, Any] = {"method": self.chance.choice(["GET", "PUT"]), "headers": {}}
        if self.chance.random() < 0.7:
            http["headers"]["x-a"] = self.chance.choice(texts)
        path = [self.chance.choice(texts) for _ in range(self.chance.randint(1, 3))]
        query = {self.chance.choice("ab"): [self.chance.choice(texts)] for _ in range(self.chance.randint(0, 2))}
        return json.dumps({"attributes": {"request": {"http": http}}, "parsed_path": path, "parsed_query": query})
