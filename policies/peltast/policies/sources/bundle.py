"""An OPA bundle: Rego modules and data, owned by roots, in files whose paths say where the data belongs.

https://www.openpolicyagent.org/docs/management-bundles#bundle-file-format
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from peltast.policies.problems import Problem
from peltast.policies.sources.bundle_signature import SIGNATURES, Verification, verify
from peltast.policies.sources.documents import parse
from peltast.policies.sources.folder import Files
from peltast.policies.sources.json_text import read_json

__all__ = ["Bundle", "DataPath", "merge", "overlap", "package_of", "path_text", "read_bundle", "select"]

MANIFEST = ".manifest"
_REFUSED = {
    "patch.json": "changes to another bundle (a delta) are given; a whole bundle is expected",
    "policy.wasm": "WebAssembly is given; Rego is expected",
}

DataPath = tuple[str, ...]
"""Names that lead to a value below ``data``."""

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PACKAGE = re.compile(
    rf'(?:[ \t\r\n]|#[^\n]*(?:\n|$))*package[ \t]+({_NAME}(?:\.{_NAME}|\["[^"\\\n]*"\])*)[ \t\r]*(?:[#;\n]|$)'
)
_PACKAGE_PART = re.compile(rf'(?<=\[")[^"]*(?="\])|{_NAME}')


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds: modules by their paths in it, and one document of data."""

    revision: str
    roots: tuple[DataPath, ...]
    """What is its own, and nobody else's. The empty path is everything."""
    modules: Mapping[str, str]
    data: Mapping[str, Any]

    @cached_property
    def data_digest(self) -> str:
        """SHA-256 of the data: computed once, for it takes seconds where they are large."""
        return hashlib.sha256(json.dumps(self.data, sort_keys=True).encode()).hexdigest()


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True)

    revision: str = ""
    roots: list[str] = [""]
    rego_version: Literal[1] = 1
    file_rego_versions: dict[str, Literal[1]] = {}
    wasm: list[None] = []


def read_bundle(files: Files, verification: Verification | None) -> Bundle:
    """The bundle in `files`, by their paths in it. Other files than OPA knows are passed over, once they are verified.

    Raises:
        ValueError: the first thing that is wrong with it; the message names the file.
    """
    verify(files, verification)
    for name in files:
        if reason := _refusal(name):
            raise ValueError(f"{name}: {reason}")
    manifest = _read_manifest(files)
    roots = _roots(manifest)
    modules = {name: _module(name, text, roots) for name, text in files.items() if name.endswith(".rego")}
    data: dict[str, Any] = {}
    try:
        for name, value in _data(files):
            _check_inside(name, (), value, roots)
            merge(name, data, value)
    except RecursionError:
        raise ValueError("the data are nested too deep") from None
    return Bundle(manifest.revision, roots, modules, data)


def package_of(name: str, text: str) -> DataPath:
    """The package of a module.

    Raises:
        ValueError: it does not begin with one that can be read without a parser.
    """
    found = _PACKAGE.match(text)
    if found is None:
        raise ValueError(f"{name}: the module does not begin with a package and its name on one line")
    return tuple(_PACKAGE_PART.findall(found[1]))


def overlap(one: DataPath, other: DataPath) -> bool:
    """Whether one of two paths is at, or below, the other."""
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


def path_text(path: DataPath) -> str:
    """`path` as Rego writes it."""
    return ".".join(("data", *path))


def merge(name: str, into: dict[str, Any], value: Mapping[str, Any], at: DataPath = ()) -> None:
    """Adds the members of `value`, from the file `name`, to those of `into`.

    Raises:
        ValueError: one that is no object is there already.
    """
    for key, item in value.items():
        known = into.get(key)
        if key not in into:
            into[key] = item
        elif isinstance(known, dict) and isinstance(item, dict):
            into[key] = dict(known)
            merge(name, into[key], item, (*at, key))
        else:
            raise ValueError(f"{name}: {path_text((*at, key))} is given twice")


def select(data: Mapping[str, Any], paths: Iterable[DataPath]) -> Mapping[str, Any]:
    """The part of `data` that is at, below, or in the way of one of `paths`."""
    below: dict[str, list[DataPath]] = {}
    for path in paths:
        if not path:
            return data
        below.setdefault(path[0], []).append(path[1:])
    chosen = ((name, data[name], rest) for name, rest in below.items() if name in data)
    return {name: select(value, rest) if isinstance(value, dict) else value for name, value, rest in chosen}


def _refusal(name: str) -> str | None:
    base = name.rpartition("/")[2]
    if base.endswith(MANIFEST) and name != MANIFEST:
        return f"a second manifest is given; {MANIFEST} at the top is expected"
    if base.endswith(SIGNATURES) and name != SIGNATURES:
        return f"a second signature is given; {SIGNATURES} at the top is expected"
    return _REFUSED.get(base)


def _read_manifest(files: Files) -> _Manifest:
    try:
        return _Manifest.model_validate(_json(MANIFEST, files.get(MANIFEST, b"{}")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise ValueError(f"{MANIFEST}: {where}: {first['msg']}") from None


def _roots(manifest: _Manifest) -> tuple[DataPath, ...]:
    roots = [tuple(part for part in root.strip("/").split("/") if root.strip("/")) for root in manifest.roots]
    if not roots:
        raise ValueError(f"{MANIFEST}: no root is given; a bundle without one may hold nothing")
    for one, other in combinations(roots, 2):
        if overlap(one, other):
            raise ValueError(f"{MANIFEST}: the roots {'/'.join(one)!r} and {'/'.join(other)!r} overlap")
    return tuple(roots)


def _module(name: str, content: bytes, roots: tuple[DataPath, ...]) -> str:
    text = _text(name, content)
    package = package_of(name, text)
    if not _is_inside(package, roots):
        raise ValueError(f"{name}: the package {'.'.join(package)} is in none of the manifest's roots")
    return text


def _data(files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each data file with its value, where it belongs."""
    for name in sorted(files):
        folder, _, base = name.rpartition("/")
        if base not in ("data.json", "data.yaml", "data.yml"):
            continue
        value = _json(name, files[name]) if base == "data.json" else _yaml(name, files[name])
        for part in reversed(folder.split("/") if folder else []):
            value = {part: value}
        if not isinstance(value, dict):
            raise ValueError(f"{name}: an object is expected at the top")
        yield name, value


def _check_inside(name: str, at: DataPath, value: Any, roots: tuple[DataPath, ...]) -> None:
    if _is_inside(at, roots):
        return
    if not isinstance(value, dict) or not any(overlap(at, root) for root in roots):
        raise ValueError(f"{name}: {path_text(at)} is in none of the manifest's roots")
    for key, item in value.items():
        _check_inside(name, (*at, key), item, roots)


def _is_inside(path: DataPath, roots: tuple[DataPath, ...]) -> bool:
    return any(path[: len(root)] == root for root in roots)


def _json(name: str, content: bytes) -> Any:
    try:
        return read_json(_text(name, content))
    except ValueError as error:
        raise ValueError(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None


def _yaml(name: str, content: bytes) -> Any:
    documents = list(parse(name, content))
    if len(documents) != 1:
        raise ValueError(f"{name}: one YAML document is expected")
    if isinstance(documents[0], Problem):
        raise ValueError(str(documents[0]))
    return documents[0].value


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name}: UTF-8 is expected") from None
