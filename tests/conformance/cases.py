"""OPA's compliance cases: their shape, and when one passes.

<https://github.com/open-policy-agent/opa/tree/main/v1/test/cases>.
OPA's own test of them is `v1/topdown/exported_test.go`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from conformance.errors import CODES, kind_of

# What policies of a mesh have no use for, with AWS, DNS and GraphQL; regorus lacks it, too.
LEFT_OUT = frozenset(
    {
        "graphql",
        "jsonschema",
        "netlookupipaddr",
        "providers-aws",
        "regometadatachain",
        "regometadatarule",
        "regoparsemodule",
        "rendertemplate",
    }
)


@dataclass(frozen=True)
class Case:
    """One case."""

    note: str
    query: str
    modules: Mapping[str, str]
    data: str
    input: str | None
    input_term: str | None
    strict: bool
    sorts: bool
    wanted: list[dict[str, Any]] | None
    error: str | None
    """The kind of error that is wanted."""


def read(root: Path) -> Iterator[Case]:
    """The cases of all folders but those that are left out; notes that are used again are numbered."""
    seen: Counter[str] = Counter()
    for file in sorted(root.glob("*/*.yaml")):
        if file.parent.name in LEFT_OUT:
            continue
        for case in yaml.load(file.read_text(), Loader=_Loader).get("cases") or []:
            seen[case["note"]] += 1
            number = seen[case["note"]]
            yield _case({**case, "note": case["note"] if number == 1 else f"{case['note']} ({number})"})


class _Loader(yaml.CSafeLoader):
    """YAML as Go reads it: a date is text, and so are `on` and `yes`."""


_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("timestamp", "bool")]
    for key, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def _case(case: Mapping[str, Any]) -> Case:
    modules = {f"test-{index}.rego": module for index, module in enumerate(case.get("modules") or [])}
    return Case(
        note=case["note"],
        query=case["query"],
        modules=modules,
        data=json.dumps(case.get("data") or {}),
        input=json.dumps(case["input"]) if "input" in case else None,
        input_term=case.get("input_term"),
        strict=bool(case.get("strict_error")),
        sorts=bool(case.get("sort_bindings")),
        wanted=case.get("want_result"),
        error=_wanted_error(case),
    )


def _wanted_error(case: Mapping[str, Any]) -> str | None:
    """By its code, or by the text, which begins with place and code where there is only that."""
    told = case.get("want_error_code") or case.get("want_error")
    return told and next(kind for code, kind in CODES.items() if code in told)


def fault(case: Case, answer: str | None, error: str | None) -> str | None:
    """Why `case` does not pass with this answer, or this error; none where it does."""
    if case.error is not None:
        return _wrong_error(case.error, error)
    if error is not None:
        return error
    got = json.loads(answer or "[]")
    wanted = case.wanted or []
    if _canonical(got, case.sorts) != _canonical(wanted, case.sorts):
        return f"answers {json.dumps(got)[:200]} for {json.dumps(wanted)[:200]}"
    return None


def _wrong_error(wanted: str, error: str | None) -> str | None:
    if error is None:
        return f"answers where an error is wanted ({wanted})"
    got = kind_of(error)
    return None if got == wanted else f"a wrong error ({got} for {wanted}): {error}"


def _canonical(results: list[dict[str, Any]], sorts: bool) -> set[str]:
    """Answers in no order; numbers by their value."""
    return {
        json.dumps({name: sorted(value, key=_text) if sorts and isinstance(value, list) else value
                    for name, value in _plain(result).items()}, sort_keys=True)
        for result in results
    }  # fmt: skip


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _plain(value: Any) -> Any:
    """JSON with one way to write a number, and text for every key."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key if isinstance(key, str) else json.dumps(key): _plain(item) for key, item in value.items()}
    return value
