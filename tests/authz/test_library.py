"""The library's own Rego tests by our evaluator, and the tiers that its page tells."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from peltast.authz._engine import QueryRefused, RegoQuery
from peltast.policies.rego_library import library_modules

ROOT = Path(__file__).parents[2]
TESTS = [
    pytest.param(file, name, id=f"{file.stem}.{name}")
    for file in sorted((ROOT / "policies" / "library").glob("*_test.rego"))
    for name in re.findall(r"^(test_\w+)", file.read_text(), re.MULTILINE)
]
TIERS = dict(re.findall(r"^\| \[`(\w+)`\].*\| (\w+) \|$", (ROOT / "docs" / "library.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize(("file", "test"), TESTS)
def test_a_test_of_the_library_holds(file: Path, test: str) -> None:
    modules = {**library_modules(), file.name: file.read_text()}
    answers = RegoQuery.load("check", modules).evaluate(f"data.peltast.{file.stem}.{test} = x")
    assert json.loads(answers) == [{"x": True}]


@pytest.mark.parametrize("name", library_modules())
def test_a_module_is_of_the_tier_that_is_told(name: str) -> None:
    modules = {name: library_modules()[name]}
    RegoQuery.load("check", modules)
    if TIERS[name] == "sidecar":
        RegoQuery.load("sidecar", modules)
    else:
        with pytest.raises(QueryRefused, match="outside the sidecar tier"):
            RegoQuery.load("sidecar", modules)
