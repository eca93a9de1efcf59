"""RegoPolicies with bundles: where they are found, what they go together with, what is told of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.bundles import DATA, FILES, MODULE, SECRET, image, manifest, signed, targz

from peltast.policies.changes import changes, rendered
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.snapshot import Snapshot, load
from peltast.policies.sources.bundle import read_bundle

URL = "https://bundles.test/app.tar.gz"


def policy(bundle: Any, **more: Any) -> bytes:
    spec = {"entrypoint": "data.app.rules.allow", "bundle": bundle, **more}
    head = "apiVersion: peltast.dev/v1\nkind: RegoPolicy\nmetadata: {name: rules, namespace: shop}\nspec:\n"
    return (head + "".join(f"  {name}: {json.dumps(value)}\n" for name, value in spec.items())).encode()


def snapshot(files: dict[str, bytes]) -> Snapshot:
    return load(files, "cluster.local", 1)


def problem(files: dict[str, bytes]) -> Problem:
    with pytest.raises(InvalidConfiguration) as caught:
        snapshot(files)
    (found,) = caught.value.problems
    return found


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


SECRET_KEY = {"keys": {"k": {"algorithm": "HS256", "key": SECRET}}}


@pytest.mark.parametrize(
    ("bundle", "files", "place"),
    [
        pytest.param({"file": "app.tar.gz"}, {"p/app.tar.gz": targz(FILES)}, "p/app.tar.gz", id="archive"),
        pytest.param({"file": "./a/b.tar.gz"}, {"p/a/b.tar.gz": targz(FILES)}, "p/a/b.tar.gz", id="in a folder"),
        pytest.param({"file": "app"}, below("p/app", FILES), "p/app", id="folder"),
        pytest.param({"oci": "app"}, below("p/app", image(targz(FILES))), "p/app", id="image layout"),
        pytest.param(
            {"file": "app", "signing": SECRET_KEY},
            below("p/app", signed({**FILES, "data.json": DATA.replace(b" ", b"")})), "p/app", id="signed folder",
        ),
    ],
)  # fmt: skip
def test_a_bundle_is_found_beside_its_policy(bundle: Any, files: dict[str, bytes], place: str) -> None:
    source = snapshot({"p/a.yaml": policy(bundle), **files}).rego["shop/rules"]
    assert source.all_modules == {f"{place}/app/rules.rego": MODULE.decode()}
    assert source.all_data["app"] == {"users": {"ada": True}}


def test_a_bundles_revision_is_where_opa_puts_it_and_makes_another_version() -> None:
    made = [
        snapshot({"a.yaml": policy({"file": "b"}), **below("b", {**FILES, ".manifest": manifest(revision=revision)})})
        for revision in ("one", "two", "one")
    ]
    said = made[0].rego["shop/rules"].all_data["system"]
    assert said == {"bundles": {"rules": {"manifest": {"revision": "one", "roots": [""]}}}}
    assert made[0].version == made[2].version != made[1].version


def test_data_in_yaml_are_no_resources_in_a_bundle_and_resources_elsewhere() -> None:
    inside = {"b/app/data.yaml": b"users: {ada: true}", "b/app/rules.rego": MODULE}
    made = snapshot({"a.yaml": policy({"file": "b"}), **inside})
    assert made.rego["shop/rules"].all_data["app"] == {"users": {"ada": True}}
    service = b"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {a: b}, ports: []}\n"
    assert "ports" in str(problem({"a.yaml": policy({"file": "b"}), **inside, "c/data.yaml": service}).field)
    assert "ports" in str(problem({"a.yaml": policy({"file": "b"}), **inside, "b/service.yaml": service}).field)


def test_a_policys_own_modules_and_data_go_beside_a_bundle_that_leaves_them_room() -> None:
    bundled = {**FILES, ".manifest": manifest(roots=["app"])}
    own = policy({"file": "b"}, module="package own", data={"limits": 1}, files=["more.rego"])
    source = snapshot({"a.yaml": own, "more.rego": b"package more", **below("b", bundled)}).rego["shop/rules"]
    assert set(source.all_modules) == {"RegoPolicy shop/rules", "more.rego", "b/app/rules.rego"}
    assert source.all_data.keys() == {"limits", "app", "system"}


@pytest.mark.parametrize(
    ("bundle", "more", "files", "says"),
    [
        pytest.param({"file": "x"}, {}, {}, "x: there is no file or folder x", id="not there"),
        pytest.param({"oci": "x"}, {}, {}, "x: there is no file or folder x", id="no layout"),
        pytest.param({"file": "../b"}, {}, below("b", FILES), "../b: there is no file", id="out of the folder"),
        pytest.param({"file": "/b"}, {}, {"etc": b""}, "/b: there is no file", id="absolute"),
        pytest.param({"file": "b"}, {}, {"b": b"x"}, "b: not a tar archive", id="no archive"),
        pytest.param({"oci": "b"}, {}, below("b", FILES), "b: oci-layout: is missing", id="a folder that is no layout"),
        pytest.param({"file": "b", "signing": SECRET_KEY}, {}, below("b", FILES), ".signatures.json: is missing",
                     id="not signed"),
        pytest.param({"file": "b"}, {}, below("b", {".manifest": manifest(roots=["x"]), **FILES}),
                     "b: app/rules.rego: the package app.rules is in none of", id="outside its roots"),
        pytest.param({"file": "b"}, {"module": "package x"}, below("b", FILES),
                     "RegoPolicy shop/rules: its package is also of the bundle's root ''", id="everything is its own"),
        pytest.param({"file": "b"}, {"module": "package app"}, below("b", {**FILES, ".manifest": manifest(
            roots=["app"])}), "its package is also of the bundle's root 'app'", id="conflicting packages"),
        pytest.param({"file": "b"}, {"files": ["m.rego"]}, {"m.rego": b"package app.x.y", **below("b", {
            **FILES, ".manifest": manifest(roots=["app"])})}, "m.rego: its package is also", id="a file's package"),
        pytest.param({"file": "b"}, {"data": {"app": {"x": 1}}}, below("b", {**FILES, ".manifest": manifest(
            roots=["app"])}), "the policy's own data.app is also", id="conflicting data"),
        pytest.param({"file": "b"}, {"data": {"x": 1}}, below("b", FILES), "the policy's own data is also", id="data"),
        pytest.param({"file": "b"}, {}, below("b", {"data.json": b'{"system": 1}'}), "data.system is given twice",
                     id="what is ours"),
    ],
)  # fmt: skip
def test_a_bundle_that_cannot_be_taken_is_a_problem_of_its_field(
    bundle: Any, more: Any, files: dict[str, bytes], says: str
) -> None:
    found = problem({"a.yaml": policy(bundle, **more), **files})
    assert (found.file, found.line, found.field) == ("a.yaml", 6, f"spec.bundle.{next(iter(bundle))}")
    assert says in found.given
    assert "an OPA bundle is expected" in found.allowed
    assert SECRET not in str(found)


# From a URL -----------------------------------------------------------------------------------------------------------


def test_a_bundle_that_is_fetched_completes_the_snapshot() -> None:
    made = snapshot({"a.yaml": policy({"url": URL, "polling": {"longPollingTimeout": "30s"}})})
    (location,) = made.bundle_locations
    assert (location.policy, location.url, location.wait.total_seconds()) == ("shop/rules", URL, 30)
    complete = made.with_bundles({location: read_bundle(FILES, None)})
    assert complete.rego["shop/rules"].all_modules == {f"{URL}/app/rules.rego": MODULE.decode()}
    assert complete.version != made.version


@pytest.mark.parametrize(
    ("fetched", "says"),
    [(None, "it was not fetched yet"), ("the server answers 500", "answers 500"), (FILES, "its package is also")],
    ids=["not yet", "failed", "in conflict"],
)
def test_a_snapshot_without_its_bundle_is_refused(fetched: Any, says: str) -> None:
    made = snapshot({"a.yaml": policy({"url": URL}, module="package app")})
    (location,) = made.bundle_locations
    found = {} if fetched is None else {location: fetched if isinstance(fetched, str) else read_bundle(fetched, None)}
    with pytest.raises(InvalidConfiguration) as caught:
        made.with_bundles(found)
    (refused,) = caught.value.problems
    assert (refused.file, refused.line, refused.field) == ("a.yaml", 6, "spec.bundle.url")
    assert says in refused.given


# Changes --------------------------------------------------------------------------------------------------------------


def test_another_bundle_is_a_change_and_a_secret_is_not_shown() -> None:
    def made(module: bytes) -> Snapshot:
        files = signed({"app/rules.rego": module})
        return snapshot({"a.yaml": policy({"file": "b", "signing": SECRET_KEY}), **below("b", files)})

    before = rendered(made(MODULE), {})
    (change,) = changes(before, rendered(made(MODULE + b"# more\n"), before))
    assert change.files == ("a.yaml", "b")
    changed = [line for line in change.difference.splitlines() if line.startswith(("+", "-"))]
    assert [line[-15:] for line in changed[2:]] == [" app/rules.rego", " app/rules.rego"]
    assert SECRET not in before["RegoPolicy/shop/rules"].text
