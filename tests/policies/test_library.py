"""The library of Rego modules: its own tests by both engines, its tiers as its pages tell them, and how it is taken."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from support.opa import opa

from peltast.policies import rego_library
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.rego_library import library_modules
from peltast.policies.snapshot import Snapshot, load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "policies" / "library"
TESTS = [
    (file.stem.removesuffix("_test"), name)
    for file in sorted(FOLDER.glob("*_test.rego"))
    for name in re.findall(r"^(test_\w+)", file.read_text(), re.MULTILINE)
]


def snapshot(library: str, module: str = "package a\\n\\nb := true") -> Snapshot:
    head = "apiVersion: peltast.dev/v1\nkind: RegoPolicy\nmetadata: {name: r}\nspec:\n"
    return load(
        {"a.yaml": f'{head}  library: {library}\n  entrypoint: data.a.b\n  module: "{module}"\n'.encode()}, "t", 1
    )


def test_each_module_has_tests_and_a_page_that_is_linked() -> None:
    index = (ROOT / "docs" / "library.md").read_text()
    assert {name for name, _ in TESTS} == set(library_modules())
    for name, text in library_modules().items():
        assert f"package peltast.{name}\n" in text
        assert f"(library/{name}.md)" in index
        assert f"library: [{name}]" in (ROOT / "docs" / "library" / f"{name}.md").read_text()


def test_the_real_opa_passes_the_same_tests_and_covers_every_line() -> None:
    ended = opa("test", "--format", "json", str(FOLDER), folder=FOLDER)
    assert ended.returncode == 0, ended.stdout
    results = json.loads(ended.stdout)
    assert {(each["package"].split(".")[-1].removesuffix("_test"), each["name"]) for each in results} == set(TESTS)
    covered = json.loads(opa("test", "--coverage", str(FOLDER), folder=FOLDER).stdout)
    assert covered["coverage"] == 100


def test_the_real_opa_finds_nothing_to_mend() -> None:
    assert opa("check", "--strict", str(FOLDER), folder=FOLDER).stderr == ""
    assert opa("fmt", "--list", str(FOLDER), folder=FOLDER).stdout == ""


def test_a_policy_takes_modules_by_name() -> None:
    modules = snapshot("[tenants, routes]").rego["default/r"].all_modules
    assert modules["Peltast's library/routes.rego"] == (FOLDER / "routes.rego").read_text()
    assert len(modules) == 3


def test_a_wheel_has_the_library_where_it_is_looked_for() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    (package,) = (each for each in wheel["packages"] if each.startswith("policies/"))
    assert rego_library.__file__ == str(ROOT / package / "policies" / "rego_library.py")
    assert wheel["force-include"] == {"policies/library": f"{Path(package).name}/policies/library"}


def test_another_module_is_another_version() -> None:
    assert len({snapshot(library).version for library in ("[]", "[tenants]", "[routes]")}) == 3


def test_a_name_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        snapshot("[routes, routers]")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.field, problem.given) == (
        "a.yaml", 5, "spec.library[1]", "'routers' is given",
    )  # fmt: skip
    assert problem.allowed == f"one of {', '.join(library_modules())} is expected"
