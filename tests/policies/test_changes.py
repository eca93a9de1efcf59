"""What changed between two configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from peltast.policies.changes import MAX_DIFF, MAX_LINES, Rendered, changes, rendered
from peltast.policies.snapshot import Snapshot, load

GOLDEN = Path(__file__).parents[1] / "golden" / "changes"


def snapshot(files: dict[str, str]) -> Snapshot:
    return load({name: text.encode() for name, text in files.items()}, "cluster.local", 1)


def golden(name: str) -> Snapshot:
    return snapshot(yaml.safe_load((GOLDEN / f"configuration.{name}.yaml").read_text())["files"])


def test_every_resource_that_changed_is_told_with_its_difference() -> None:
    before = rendered(golden("before"), {})
    found = changes(before, rendered(golden("after"), before))
    expected = yaml.safe_load((GOLDEN / "configuration.out.yaml").read_text())
    assert [{"object": each.object, "files": list(each.files), "difference": each.difference} for each in found] == (
        expected
    )


def test_nothing_is_told_of_what_is_the_same() -> None:
    before = rendered(golden("before"), {})
    assert changes(before, rendered(golden("before"), before)) == []
    assert changes(before, rendered(golden("before"), {})) == []


def test_at_first_everything_came() -> None:
    found = changes({}, rendered(golden("before"), {}))
    assert [each.object for each in found] == [
        "AuthorizationPolicy/bookshop/browse",
        "AuthorizationPolicy/bookshop/gone",
        "RegoPolicy/bookshop/hours",
        "Service/bookshop/catalog",
        "WorkloadEntry/bookshop/catalog",
        "WorkloadRegistration/bookshop/catalog",
    ]
    assert all(line[:1] in "+-@" for each in found for line in each.difference.splitlines())


def test_secrets_of_applications_are_not_shown() -> None:
    text = "".join(each.text for each in rendered(golden("before"), {}).values())
    assert "TOKEN: (not shown)" in text
    assert "secret-1" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("x" * 2 * MAX_DIFF, lambda found: found.endswith("more characters"), id="long lines"),
        pytest.param(
            "x\n" * (MAX_LINES + 1), lambda found: found == "0 lines became 4001: too many to compare", id="many lines"
        ),
    ],
)
def test_a_difference_is_bounded(text: str, expected: object) -> None:
    [change] = changes({}, {"Service/a/b": Rendered(("a.yaml",), text, "digest")})
    assert callable(expected)
    assert expected(change.difference)
    assert len(change.difference) < MAX_DIFF + 100
