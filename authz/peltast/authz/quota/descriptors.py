"""Reading the descriptor configuration of envoyproxy/ratelimit: bytes in, typed values or all problems out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, ValidationError

from peltast.authz.quota.limits import Domain, Limit, Node, Unit, entry_key
from peltast.policies.kinds.registry import explain
from peltast.policies.kinds.resource import Model
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.sources.documents import Document, FieldPath, field_text, parse

__all__ = ["load_limits"]

MAX_REQUESTS = 2**32 - 1
"""The protocol's uint32."""
_UNITS = ", ".join(unit.name.lower() for unit in Unit)

Text = Annotated[str, Field(min_length=1, max_length=1024)]


class _Part(Model):
    model_config = ConfigDict(alias_generator=None)  # the original writes its fields in snake case


class _Replaces(_Part):
    name: Text


class _RateLimit(_Part):
    unit: str | None = None
    requests_per_unit: Annotated[int, Field(ge=0, le=MAX_REQUESTS)] | None = None
    unlimited: bool = False
    name: str = Field(default="", max_length=1024)
    replaces: list[_Replaces] = []

    def problems(self) -> Iterator[tuple[str, str, str]]:
        """Which field is wrong, what was given, what is allowed."""
        if self.unlimited:
            for name in ("unit", "requests_per_unit"):
                if (given := getattr(self, name)) is not None:
                    yield name, f"{given!r} is given", "with unlimited: true there is neither unit nor number"
            return
        if self.unit is None or self.unit.upper() not in Unit.__members__:
            yield "unit", f"{self.unit!r} is given" if self.unit else "nothing is given", f"known are {_UNITS}"
        if self.requests_per_unit is None:
            yield "requests_per_unit", "nothing is given", "the field is required, unless unlimited is true"
        if self.name and any(replaced.name == self.name for replaced in self.replaces):
            yield "replaces", f"{self.name!r} is given", "a limit replaces others, not itself"

    def limit(self, *, shadow_mode: bool) -> Limit:
        unit = None if self.unlimited or self.unit is None else Unit[self.unit.upper()]
        replaces = frozenset(replaced.name for replaced in self.replaces)
        return Limit(self.requests_per_unit or 0, unit, self.name, replaces, shadow_mode)


_NOT_TAKEN = "Peltast does not have it: the limit would be another one than is written"


class _Descriptor(_Part):
    key: Text
    value: str = Field(default="", max_length=1024)
    rate_limit: _RateLimit | None = None
    descriptors: list[_Descriptor] = []
    shadow_mode: bool = False
    detailed_metric: bool = False
    """Of metrics alone, which are not made by descriptor here: it has no effect."""

    refused: ClassVar[dict[str, str]] = dict.fromkeys(("quota_mode", "share_threshold", "value_to_metric"), _NOT_TAKEN)


class _Root(_Part):
    domain: Text
    descriptors: list[_Descriptor] = []


@dataclass
class _Named:
    """A limit's name, or names that it replaces, where they are written."""

    name: str
    replaces: frozenset[str]
    problem: Problem


def load_limits(files: Mapping[str, bytes]) -> Mapping[str, Domain]:
    """The domains of `files` (contents by name), one to a file.

    Raises:
        InvalidConfiguration: with everything that is wrong with any of them.
    """
    problems: list[Problem] = []
    domains: dict[str, Domain] = {}
    written: dict[str, str] = {}
    for name, text in sorted(files.items()):
        document = _only_document(name, text, problems)
        root = _root(document, problems) if document else None
        if document is None or root is None:
            continue
        if root.domain in written:
            problems.append(_problem(document, ("domain",), f"{root.domain!r} is given", _taken(written[root.domain])))
        written[root.domain] = name
        domains[root.domain] = _Reader(document, problems).read(root)
    if problems:
        raise InvalidConfiguration(problems)
    return domains


def _taken(file: str) -> str:
    return f"a domain is written in one file, and {file} has it"


def _only_document(name: str, text: bytes, problems: list[Problem]) -> Document | None:
    if not name.endswith((".yaml", ".yml")):
        problems.append(Problem(name, 0, "", "not a YAML file by its name", ".yaml and .yml are read as descriptors"))
        return None
    found = list(parse(name, text))
    refused = [each for each in found if isinstance(each, Problem)]
    documents = [each for each in found if isinstance(each, Document)]
    if not refused and len(documents) != 1:
        refused = [Problem(name, 0, "", f"{len(documents)} documents are given", "a file is one document, of a domain")]
    problems += refused
    return None if refused else documents[0]


def _root(document: Document, problems: list[Problem]) -> _Root | None:
    """By way of JSON, in which a list is a list also to strict types."""
    if not isinstance(document.value, dict):
        allowed = "an object with domain and descriptors is expected"
        problems.append(_problem(document, (), "a list or a scalar is given", allowed))
        return None
    try:
        return _Root.model_validate_json(json.dumps(document.value), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [explain(document, _Root, detail, ()) for detail in details]
        return None


class _Reader:
    """Makes the tree of one document, and notes what is wrong with it beyond the types of single fields."""

    def __init__(self, document: Document, problems: list[Problem]) -> None:
        self.document = document
        self.problems = problems
        self.named: list[_Named] = []

    def read(self, root: _Root) -> Domain:
        domain = Domain(None, self.nodes(root.descriptors, ("descriptors",)))
        self.problems += _replacing_problems(self.named)
        return domain

    def nodes(self, descriptors: Iterable[_Descriptor], at: FieldPath) -> Mapping[str, Node]:
        nodes: dict[str, Node] = {}
        for index, descriptor in enumerate(descriptors):
            here = (*at, index)
            key = entry_key(descriptor.key, descriptor.value)
            if key in nodes:
                allowed = "key and value, joined by _, are once in a list"
                self.problems.append(_problem(self.document, here, f"{key!r} is given twice", allowed))
            children = self.nodes(descriptor.descriptors, (*here, "descriptors"))
            nodes[key] = Node(self.limit(descriptor, (*here, "rate_limit")), children)
        return nodes

    def limit(self, descriptor: _Descriptor, at: FieldPath) -> Limit | None:
        given = descriptor.rate_limit
        if given is None:
            return None
        found = [_problem(self.document, (*at, name), said, allowed) for name, said, allowed in given.problems()]
        self.problems += found
        if found:
            return None
        limit = given.limit(shadow_mode=descriptor.shadow_mode)
        names = ", ".join(sorted(limit.replaces))
        self.named.append(
            _Named(limit.name, limit.replaces, _problem(self.document, (*at, "replaces"), f"{names} is given", ""))
        )
        return limit


def _replacing_problems(named: list[_Named]) -> Iterator[Problem]:
    """Names that no limit has, and limits that replace each other: neither of those would be in force."""
    replaced: dict[str, set[str]] = {}
    for each in named:
        replaced.setdefault(each.name, set()).update(each.replaces)
    for each in named:
        if unknown := each.replaces - replaced.keys():
            yield _allowing(each.problem, f"no limit of the domain has the name {', '.join(sorted(unknown))}")
        elif each.name and each.name in _reachable(replaced, each.replaces):
            yield _allowing(each.problem, f"{each.name} is replaced by what it replaces, so that neither is in force")


def _allowing(problem: Problem, allowed: str) -> Problem:
    return Problem(problem.file, problem.line, problem.field, problem.given, allowed)


def _reachable(replaced: Mapping[str, set[str]], begin: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    ahead = list(begin)
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += replaced.get(name, ())
    return seen


def _problem(document: Document, path: FieldPath, given: str, allowed: str) -> Problem:
    return Problem(document.file, document.line(path), field_text(path), given, allowed)
