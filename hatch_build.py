"""Builds the two Rust libraries and puts them beside the Python that loads them."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = {
    "libpeltast_engine.so": "authz/peltast/authz/_engine.abi3.so",
    "libpeltast_filter.so": "proxy/peltast/proxy/libpeltast_filter.so",
}

# Two commands and not one: together, cargo would build the filter's engine with the Python mount inside.
COMMANDS = [
    ["cargo", "build", "--release", "--locked", "-p", "peltast-filter"],
    ["cargo", "rustc", "--release", "--locked", "-p", "peltast-engine", "--features", "python", "--lib",
     "--crate-type", "cdylib"],
]  # fmt: skip


def build(root: Path) -> None:
    """Builds both crates in release mode and copies what came of it."""
    if shutil.which("cargo") is None:
        raise SystemExit("Building Peltast from source needs Rust (https://rustup.rs): cargo was not found.")
    for command in COMMANDS:
        subprocess.run(command, cwd=root, check=True)
    for library, place in LIBRARIES.items():
        replace(root / "target" / "release" / library, root / place)


def replace(source: Path, target: Path) -> None:
    """Copies by way of a rename: a running Envoy keeps the file that it has mapped."""
    temporary = target.with_suffix(".new")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling's hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is made."""
        build(Path(self.root))
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    build(Path(__file__).parent)
