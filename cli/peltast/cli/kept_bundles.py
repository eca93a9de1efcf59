"""The last good bundles from URLs, as files that outlive the control plane."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import structlog

from peltast.identity.files import make_private_folder, write_private
from peltast.policies.rego_sources import BundleLocation

__all__ = ["KeptBundles"]

log = structlog.get_logger()


class KeptBundles:
    """Archives in `folder`, one for each policy and URL."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, location: BundleLocation) -> bytes | None:
        """The archive that was kept last; none where there is none."""
        file = self._file(location)
        return file.read_bytes() if file.exists() else None

    def keep(self, location: BundleLocation, archive: bytes) -> None:
        """Keeps `archive`. That it cannot be kept is no reason not to decide by it."""
        try:
            make_private_folder(self._folder)
            write_private(self._file(location), archive)
        except OSError as error:
            log.exception("fetched bundle not kept", url=location.url, error=str(error))

    def drop_others(self, locations: Iterable[BundleLocation]) -> None:
        """Removes what is not of `locations`: its policies are gone."""
        wanted = {self._file(location) for location in locations}
        for file in set(self._folder.glob("*.tar.gz")) - wanted:
            file.unlink(missing_ok=True)

    def _file(self, location: BundleLocation) -> Path:
        name = hashlib.sha256(f"{location.policy} {location.url}".encode()).hexdigest()
        return self._folder / f"{name}.tar.gz"
