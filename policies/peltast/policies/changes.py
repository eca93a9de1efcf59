"""What changed between two configurations, resource by resource, as people read it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from peltast.policies.kinds.rego import RegoPolicySpec
from peltast.policies.kinds.resource import Resource, Spec
from peltast.policies.snapshot import Snapshot
from peltast.policies.sources.bundle import Bundle

__all__ = ["Change", "Rendered", "changes", "rendered"]

MAX_DIFF = 64 * 1024
MAX_LINES = 4000
"""Of both sides together: comparing takes up to the square of it."""

HIDDEN = {"WorkloadRegistration": "environment"}
"""A member of a kind's spec whose values may be secrets of applications."""


@dataclass(frozen=True)
class Rendered:
    """A resource as text: its YAML, then its Rego and data files. The digest is of what is hidden, too."""

    files: tuple[str, ...]
    text: str
    digest: str


@dataclass(frozen=True)
class Change:
    """A resource (``KIND/NAMESPACE/NAME``) that came, went or is another now; the files that say it; the difference."""

    object: str
    files: tuple[str, ...]
    difference: str


def rendered(snapshot: Snapshot, before: Mapping[str, Rendered]) -> dict[str, Rendered]:
    """Every resource of `snapshot` by ``KIND/NAMESPACE/NAME``; the text of those that are as `before` is taken over."""
    names = ((f"{each.kind}/{each.full_name}", each) for each in snapshot.resources)
    return {name: _render(each, snapshot, before.get(name)) for name, each in names}


def changes(before: Mapping[str, Rendered], after: Mapping[str, Rendered]) -> list[Change]:
    """The resources that differ, in order of their names; each with a unified diff of at most 64 KiB."""
    names = sorted(before.keys() | after.keys())
    return [_change(name, before.get(name), after.get(name)) for name in names if _differ(before, after, name)]


def _differ(before: Mapping[str, Rendered], after: Mapping[str, Rendered], name: str) -> bool:
    old, new = before.get(name), after.get(name)
    return old is None or new is None or old.digest != new.digest


def _change(name: str, old: Rendered | None, new: Rendered | None) -> Change:
    here = new or old
    assert here is not None, "it is in one of them"
    return Change(name, here.files, _difference(old.text if old else "", new.text if new else ""))


def _difference(old: str, new: str) -> str:
    before, after = old.splitlines(), new.splitlines()
    if before == after:
        return "only values that are not shown differ"
    if len(before) + len(after) > MAX_LINES:
        return f"{len(before)} lines became {len(after)}: too many to compare"
    text = "\n".join(difflib.unified_diff(before, after, "before", "after", lineterm="")) + "\n"
    left_out = len(text) - MAX_DIFF
    return text if left_out <= 0 else f"{text[:MAX_DIFF]} … and {left_out} more characters"


def _render(resource: Resource[Spec], snapshot: Snapshot, before: Rendered | None) -> Rendered:
    document, files = resource.document.value, dict(_files(resource, snapshot))
    digest = hashlib.sha256(json.dumps([document, files]).encode()).hexdigest()
    names = (resource.document.file, *files)
    if before is not None and before.digest == digest:
        return replace(before, files=names)
    parts = (f"# {name}\n{text}\n" for name, text in files.items())
    return Rendered(names, "".join([_yaml(_shown(resource.kind, document)), *parts]), digest)


def _files(resource: Resource[Spec], snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """The files beside a RegoPolicy, by their paths."""
    if not isinstance(resource.spec, RegoPolicySpec):
        return
    source = snapshot.rego[resource.full_name]
    from_files = {name: value for name, value in source.data.items() if name not in resource.spec.data}
    data = json.dumps(from_files, indent=2, ensure_ascii=False)
    for file in resource.spec.files:
        name = (PurePosixPath(resource.document.file).parent / file).as_posix()
        yield name, source.modules.get(name, data)  # what is no module is data, and all of it is one document
    if source.bundle is not None:
        yield source.place, _listing(source.bundle)


def _listing(bundle: Bundle) -> str:
    """What a bundle holds, file by file; its data are one."""
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in bundle.modules.items()}
    lines = [f"{digest} {name}" for name, digest in sorted(hashes.items())]
    return "\n".join([f"revision {bundle.revision!r}", *lines, f"{bundle.data_digest} data"])


def _shown(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    if kind == "RegoPolicy":
        return _without_signing_keys(document)
    hidden = HIDDEN.get(kind)
    if hidden is None or not document["spec"].get(hidden):
        return document
    values = dict.fromkeys(document["spec"][hidden], "(not shown)")
    return {**document, "spec": {**document["spec"], hidden: values}}


def _without_signing_keys(document: dict[str, Any]) -> dict[str, Any]:
    """The secret of HS256 signs, too."""
    bundle = document["spec"].get("bundle") or {}
    signing = bundle.get("signing")
    if not signing:
        return document
    keys = {name: {**key, "key": "(not shown)"} for name, key in signing["keys"].items()}
    return {**document, "spec": {**document["spec"], "bundle": {**bundle, "signing": {**signing, "keys": keys}}}}


class _Dumper(yaml.CSafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(document: dict[str, Any]) -> str:
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text
