"""What RegoPolicies are made of: their own modules and data, and their bundles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from peltast.policies.kinds.bundle import BundleSource, Polling
from peltast.policies.kinds.rego import RegoPolicySpec, Tier
from peltast.policies.kinds.resource import Resource
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.sources.archive import inner_path, unpack
from peltast.policies.sources.bundle import (
    Bundle,
    DataPath,
    merge,
    overlap,
    package_of,
    path_text,
    read_bundle,
    select,
)
from peltast.policies.sources.bundle_signature import Verification
from peltast.policies.sources.folder import Files
from peltast.policies.sources.oci import layer

__all__ = ["BUNDLE", "MAX_DESCRIPTOR_BYTES", "BundleLocation", "RegoSource", "bundle_folder", "local_bundle"]

BUNDLE = "an OPA bundle is expected, see docs/rego.md"
MAX_DESCRIPTOR_BYTES = 1024 * 1024


@dataclass(frozen=True)
class BundleLocation:
    """Where a RegoPolicy's bundle is fetched from, how often, and by which keys it must be signed."""

    policy: str
    url: str
    timeout: timedelta
    delays: tuple[timedelta, timedelta]
    wait: timedelta
    verification: Verification | None


@dataclass(frozen=True)
class TierChoice:
    """The tier of a policy that asks for none, and why it is that one."""

    tier: Tier
    why: str


@dataclass(frozen=True)
class RegoSource:
    """A RegoPolicy with its own modules and data, those of its files among them, and its bundle, if that is here."""

    resource: Resource[RegoPolicySpec]
    modules: Mapping[str, str]
    data: Mapping[str, Any]
    bundle: Bundle | None = None
    descriptors: bytes | None = None
    """A FileDescriptorSet by which messages of gRPC are read."""
    choice: TierChoice | None = None
    read: frozenset[DataPath] | None = None
    """Where its rules can tell what data is there; none while that is not known, and all of it may be read."""

    @property
    def tier(self) -> Tier:
        """Where it is evaluated. Until that is chosen, or asked for, in the sidecar."""
        return self.resource.spec.tier or (self.choice.tier if self.choice is not None else Tier.SIDECAR)

    @property
    def tier_reason(self) -> str:
        """Why it is evaluated there."""
        if self.resource.spec.tier is not None:
            return "it asks for it"
        return self.choice.why if self.choice is not None else "nothing else is chosen"

    def in_tier(self, tier: Tier, why: str) -> RegoSource:
        """The same in `tier`, as it asks for none."""
        return replace(self, choice=TierChoice(tier, why))

    @property
    def location(self) -> BundleLocation | None:
        """Where the bundle is fetched from; none where there is none, or where it is a file."""
        source = self.resource.spec.bundle
        if source is None or source.url is None:
            return None
        polling = source.polling or Polling()
        return BundleLocation(
            self.resource.full_name,
            source.url,
            source.fetch_timeout,
            polling.delays,
            polling.wait,
            source.verification,
        )

    @property
    def place(self) -> str:
        """Where the bundle is, as people know it."""
        source = self.resource.spec.bundle
        if source is None:
            return ""
        return source.url or _path(self.resource, source).as_posix()

    @cached_property
    def all_modules(self) -> Mapping[str, str]:
        """The policy's own modules and the bundle's, by the names of their files."""
        bundled = self.bundle.modules if self.bundle is not None else {}
        return {**self.modules, **{f"{self.place}/{name}": text for name, text in bundled.items()}}

    @cached_property
    def all_data(self) -> Mapping[str, Any]:
        """The policy's own data and the bundle's, and where OPA puts it the bundle's revision."""
        if self.bundle is None:
            return self.data
        roots = ["/".join(root) for root in self.bundle.roots]
        manifest = {"revision": self.bundle.revision, "roots": roots}
        together = dict(self.data)
        merge(self.place, together, self.bundle.data)
        merge(self.place, together, {"system": {"bundles": {self.resource.name: {"manifest": manifest}}}})
        return together

    @cached_property
    def needed_data(self) -> Mapping[str, Any]:
        """What its rules read of its data. Of a bundle also the revision: another one is another program, on record."""
        return self.all_data if self.read is None else select(self.all_data, [*self.read, ("system", "bundles")])

    def with_bundle(self, found: Bundle | str) -> RegoSource:
        """The same with a bundle that was fetched; or with why there is none.

        Raises:
            InvalidConfiguration: there is none, or it does not go together with what the policy says itself.
        """
        complete = replace(self, bundle=found) if isinstance(found, Bundle) else self
        wrong = found if isinstance(found, str) else complete.conflict()
        if wrong is not None:
            given = f"{self.place}: {wrong}"
            raise InvalidConfiguration([self.resource.problem(("spec", "bundle", "url"), given, BUNDLE)])
        return complete

    @property
    def content(self) -> list[Any]:
        """What a version of the configuration is computed from; of a bundle's data their digest."""
        bundle = self.bundle
        bundled = [] if bundle is None else [bundle.revision, bundle.roots, bundle.data_digest]
        descriptors = [] if self.descriptors is None else [self.descriptors.hex()]
        return [dict(self.all_modules), dict(self.data), *bundled, *descriptors]

    def conflict(self) -> str | None:
        """What of the policy's own the bundle claims for itself; none where they go together."""
        for root in self.bundle.roots if self.bundle is not None else ():
            for name, text in self.modules.items():
                if overlap(package_of(name, text), root):
                    return f"{name}: its package is also of the bundle's root {'/'.join(root)!r}"
            if self.data and _reaches(self.data, root):
                return f"the policy's own {path_text(root)} is also of the bundle's root {'/'.join(root)!r}"
        try:
            self.all_data  # noqa: B018 - computed here for the first time
        except ValueError as error:
            return str(error)
        return None


def local_bundle(files: Files, resource: Resource[RegoPolicySpec], source: BundleSource) -> Bundle:
    """The bundle that is in a file or folder of the configuration.

    Raises:
        ValueError: it is not there, or is none; the message names the file.
    """
    path = _path(resource, source).as_posix()
    if source.file is not None and path in files:
        return read_bundle(unpack(files[path]), source.verification)
    inside = {name.removeprefix(f"{path}/"): content for name, content in files.items() if name.startswith(f"{path}/")}
    if not inside:
        raise ValueError(f"there is no file or folder {path}")
    if source.oci is not None:
        return read_bundle(unpack(layer(inside)), source.verification)
    return read_bundle(inside, source.verification)


def bundle_folder(resource: Resource[RegoPolicySpec]) -> PurePosixPath | None:
    """The folder whose data files are a bundle's and no resources; none where the bundle is elsewhere."""
    source = resource.spec.bundle
    return _path(resource, source) if source is not None and source.url is None else None


def _path(resource: Resource[RegoPolicySpec], source: BundleSource) -> PurePosixPath:
    """The path of a bundle from the top of the configuration; nothing is there where it leads out of its folder."""
    try:
        inner = inner_path(source.file or source.oci or "")
    except ValueError:
        return PurePosixPath("..")
    return PurePosixPath(resource.document.file).parent / inner


def _reaches(data: Any, path: DataPath) -> bool:
    """Whether `data` has a value at, or in the way of, `path`."""
    for part in path:
        if not isinstance(data, dict):
            return True
        if part not in data:
            return False
        data = data[part]
    return True
