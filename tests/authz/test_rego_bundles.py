"""Bundles down to decisions: what the engine makes of one, and where admission finds what is wrong in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.bundles import manifest, targz

from peltast.authz.admission import RegoAdmission
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.snapshot import Snapshot

Make = Callable[..., Any]

MODULE = b"package app\n\nallow if data.users[input.parsed_path[0]]\n"
CUSTOM = {"action": "CUSTOM", "provider": {"name": "rules"}, "rules": [{}]}


def bundled(mesh: Make, policy: Make, module: bytes = MODULE, revision: str = "r1", **more: Any) -> Any:
    files = {"app/a.rego": module, "users/data.json": b'{"ada": true}', ".manifest": manifest(revision=revision)}
    spec = {"entrypoint": "data.app.allow", "bundle": {"file": "b.tar.gz"}, **more}
    rego = policy(spec, kind="RegoPolicy", name="rules")
    return mesh(rego, policy(CUSTOM), files={"b.tar.gz": targz(files)})


@pytest.mark.parametrize(("path", "allowed"), [("/ada", True), ("/eve", False)])
async def test_a_bundle_decides(mesh: Make, policy: Make, path: str, *, allowed: bool) -> None:
    made = bundled(mesh, policy)
    async with RegoAdmission() as admission:
        await admission.check(made.revision.snapshot)
    assert made.decide(path=path).allowed == allowed


def test_another_revision_is_another_program(mesh: Make, policy: Make) -> None:
    hashes = [bundled(mesh, policy, revision=revision).decide(path="/ada").program for revision in ("r1", "r2", "r1")]
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_policy_can_read_the_revision(mesh: Make, policy: Make) -> None:
    module = b'package app\n\nallow if data.system.bundles.rules.manifest.revision == "r2"\n'
    assert not bundled(mesh, policy, module).decide().allowed
    assert bundled(mesh, policy, module, "r2").decide().allowed


async def test_what_is_not_admitted_is_told_with_its_file_in_the_bundle(mesh: Make, policy: Make) -> None:
    module = b'package app\n\nallow if http.send({"method": "get", "url": "http://x"}).status_code == 200\n'
    async with RegoAdmission() as admission:
        with pytest.raises(InvalidConfiguration) as caught:
            await admission.check(_snapshot(mesh, policy, module))
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == ("b.tar.gz/app/a.rego", 3)
    assert "http.send" in problem.given


def _snapshot(mesh: Make, policy: Make, module: bytes) -> Snapshot:
    """Of a program that does not load; a Mesh would load it."""
    snapshot: Snapshot = bundled(mesh, policy).revision.snapshot
    good = snapshot.rego["shop/rules"]
    assert good.bundle is not None
    bundle = replace(good.bundle, modules={"app/a.rego": module.decode()})
    return replace(snapshot, rego={"shop/rules": replace(good, bundle=bundle)})
