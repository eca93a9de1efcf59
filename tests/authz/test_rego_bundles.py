"""Bundles down to decisions: what the engine makes of one, and where admission finds what is wrong in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.bundles import manifest, targz

from peltast.authz.admission import RegoAdmission
from peltast.authz.revision import compile_revision
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


# What of its data goes to sidecars ------------------------------------------------------------------------------------

DATA = {
    "users": {"ada": {"role": "admin", "note": "x"}, "eve": {"role": "guest", "note": "y"}},
    "roles": {"admin": ["GET", "PUT"], "guest": ["GET"]},
    "limits": {"day": 5, "night": 9},
    "unread": {"much": [1, 2, 3]},
}
SOME = b"""package app

import data.roles as granted

allow if {
\tinput.attributes.request.http.method in granted[role]
\tdata.limits.day > count(input.parsed_path)
}

role := data.users[input.parsed_path[0]].role
"""


def with_data(mesh: Make, policy: Make, tier: str, data: Any, revision: str = "r1") -> Any:
    files = {"app/a.rego": SOME, "data.json": json.dumps(data).encode(), ".manifest": manifest(revision=revision)}
    spec = {"entrypoint": "data.app.allow", "bundle": {"file": "b.tar.gz"}, "tier": tier}
    return mesh(policy(spec, kind="RegoPolicy", name="rules"), policy(CUSTOM), files={"b.tar.gz": targz(files)})


async def admitted(made: Any) -> Any:
    """The same mesh, as the control plane makes it of a policy that was admitted."""
    async with RegoAdmission() as admission:
        return type(made)(compile_revision(await admission.check(made.revision.snapshot)), "shop/catalog")


def data_of(made: Any) -> Any:
    (rego,) = json.loads(made.revision.programs["shop/catalog"])["rego"]
    return rego["data"]


@pytest.mark.parametrize("tier", ["sidecar", "check"])
async def test_only_what_rules_read_is_in_a_program_and_decides_alike(mesh: Make, policy: Make, tier: str) -> None:
    whole = with_data(mesh, policy, tier, DATA)
    part = await admitted(whole)
    manifest_of = {"rules": {"manifest": {"revision": "r1", "roots": [""]}}}
    assert data_of(part) == {
        "users": DATA["users"],
        "roles": DATA["roles"],
        "limits": {"day": 5},
        "system": {"bundles": manifest_of},
    }
    asked = [
        (method, path) for method in ("GET", "PUT", "POST") for path in ("/ada", "/eve", "/mallory", "/ada/1/2/3/4/5")
    ]
    answers = [[each.decide(method=method, path=path).allowed for method, path in asked] for each in (whole, part)]
    assert answers[0] == answers[1]
    assert set(answers[0]) == {True, False}


async def test_a_program_is_another_with_the_revision_or_what_is_read_and_with_nothing_else(
    mesh: Make, policy: Make
) -> None:
    async def program(data: Any, revision: str = "r1") -> bytes:
        made = await admitted(with_data(mesh, policy, "sidecar", data, revision))
        return bytes(made.revision.programs["shop/catalog"])

    before = await program(DATA)
    assert await program({**DATA, "unread": 1, "limits": {"day": 5}}) == before
    assert await program({**DATA, "limits": {"day": 6}}) != before
    assert await program(DATA, "r2") != before


async def test_data_where_a_rule_is_are_refused_though_nobody_reads_them(mesh: Make, policy: Make) -> None:
    snapshot = bundled(mesh, policy).revision.snapshot
    source = snapshot.rego["shop/rules"]
    bundle = replace(source.bundle, data={"users": {}, "app": {"allow": {"deep": True}}})
    async with RegoAdmission() as admission:
        with pytest.raises(InvalidConfiguration, match=r"it holds data\.app\.allow, which is a rule"):
            await admission.admit(replace(source, bundle=bundle))
