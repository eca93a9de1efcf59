"""YAML text to plain values that remember their lines.

Read from the parser's events and not through its object constructor: events keep line marks, need no recursion, and
let us count nodes as they come, so that neither nesting nor aliases ("a billion laughs") can take more than their
share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from peltast.policies.problems import Problem

__all__ = ["Document", "FieldPath", "field_text", "parse"]

MAX_DEPTH = 64
MAX_NODES = 200_000

FieldPath = tuple[str | int, ...]
"""Where a value is in its document: member names and list indices."""


@dataclass(frozen=True)
class Document:
    """One YAML document: its value, and the line of every value in it."""

    file: str
    value: Any
    lines: Mapping[FieldPath, int]

    def line(self, path: FieldPath) -> int:
        """The line of the value at `path`, or of what encloses it where there is none."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)


def field_text(path: FieldPath) -> str:
    """`path` as people write it: ``spec.rules[0].to``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def parse(file: str, text: bytes) -> Iterator[Document | Problem]:
    """Reads all documents of `text`. The first problem ends it; documents before it are given."""
    try:
        yield from _Reader(file).read(text)
    except _Refused as refused:
        yield refused.problem
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        yield Problem(file, mark.line + 1 if mark else 0, "", f"not YAML: {error.problem}", "YAML 1.1 is expected")
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        yield Problem(file, 0, "", f"not YAML: {error}", "YAML in UTF-8 is expected")


class _Refused(Exception):
    def __init__(self, problem: Problem) -> None:
        self.problem = problem


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    value: list[Any] | dict[str, Any]
    path: FieldPath
    anchor: str | None
    nodes_before: int
    height: int = 1
    key: str | None = None


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file
        self.scalars = yaml.CSafeLoader("")

    def read(self, text: bytes) -> Iterator[Document]:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            match event:
                case yaml.DocumentStartEvent():
                    self.begin()
                case yaml.DocumentEndEvent():
                    if self.root is not None:
                        yield Document(self.file, self.root, self.lines)
                case yaml.AliasEvent():
                    self.alias(event)
                case yaml.ScalarEvent():
                    self.scalar(event)
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self.open(event)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self.close()

    def begin(self) -> None:
        self.root: Any = None
        self.lines: dict[FieldPath, int] = {}
        self.stack: list[_Open] = []
        self.anchors: dict[str, tuple[Any, int, int]] = {}
        self.nodes = 0

    def open(self, event: yaml.SequenceStartEvent | yaml.MappingStartEvent) -> None:
        self.check_tag(event)
        self.check_depth(event, 1)
        value: list[Any] | dict[str, Any] = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        nodes_before = self.nodes
        path = self.place(value, event, 1)
        self.stack.append(_Open(value, path, event.anchor, nodes_before))

    def close(self) -> None:
        closed = self.stack.pop()
        self.raise_parent(closed.height)
        if closed.anchor:
            self.anchors[closed.anchor] = (closed.value, self.nodes - closed.nodes_before, closed.height)

    def raise_parent(self, height: int) -> None:
        """Takes in that the innermost open value has a child of `height`."""
        if self.stack:
            self.stack[-1].height = max(self.stack[-1].height, height + 1)

    def check_depth(self, event: yaml.Event, height: int) -> None:
        if len(self.stack) + height > MAX_DEPTH:
            self.refuse(event, f"values are nested more than {MAX_DEPTH} deep", f"at most {MAX_DEPTH} are allowed")

    def check_tag(self, event: yaml.ScalarEvent | yaml.SequenceStartEvent | yaml.MappingStartEvent) -> None:
        if event.tag not in (None, "!"):
            self.refuse(event, f"the tag {event.tag}", "tags are not allowed")

    def scalar(self, event: yaml.ScalarEvent) -> None:
        self.check_tag(event)
        parent = self.stack[-1] if self.stack else None
        if parent and isinstance(parent.value, dict) and parent.key is None:
            self.take_key(parent, event)
            return
        node = yaml.ScalarNode(self.tag(event), event.value)
        value = self.scalars.construct_object(node)
        self.place(value, event, 1)
        if event.anchor:
            self.anchors[event.anchor] = (value, 1, 0)

    def tag(self, event: yaml.ScalarEvent) -> str:
        tag = self.scalars.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        plain = ("bool", "int", "float", "null")
        return str(tag) if str(tag).rpartition(":")[2] in plain else "tag:yaml.org,2002:str"

    def take_key(self, parent: _Open, event: yaml.ScalarEvent) -> None:
        assert isinstance(parent.value, dict)
        if event.value in parent.value:
            line = self.lines.get((*parent.path, event.value), 0)
            self.refuse(event, f"{event.value} is given twice", f"the first is on line {line}")
        parent.key = event.value

    def alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor is None or event.anchor not in self.anchors:
            self.refuse(event, f"the alias *{event.anchor}", "an alias must follow the whole of what it repeats")
        value, nodes, height = self.anchors[event.anchor]
        self.check_depth(event, height)
        self.raise_parent(height)
        self.place(value, event, nodes)

    def place(self, value: Any, event: yaml.Event, nodes: int) -> FieldPath:
        """Puts `value` where the next value belongs."""
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.refuse(event, f"a document has more than {MAX_NODES} values", "split it into several")
        parent = self.stack[-1] if self.stack else None
        path: FieldPath
        if parent is None:
            path, self.root = (), value
        elif isinstance(parent.value, list):
            path = (*parent.path, len(parent.value))
            parent.value.append(value)
        elif parent.key is None:
            self.refuse(event, "a member whose name is no text", "member names must be text")
        else:
            path = (*parent.path, parent.key)
            parent.value[parent.key] = value
            parent.key = None
        self.lines[path] = line_of(event)
        return path

    def refuse(self, event: yaml.Event, given: str, allowed: str) -> NoReturn:
        field = field_text(self.stack[-1].path) if self.stack else ""
        raise _Refused(Problem(self.file, line_of(event), field, given, allowed))


def line_of(event: yaml.Event) -> int:
    """The line that `event` begins on, from 1."""
    return event.start_mark.line + 1 if event.start_mark else 0
