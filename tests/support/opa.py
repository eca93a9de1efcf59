"""The real `opa`, built from its Go module into `target/opa`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

VERSION = "v1.22.0"
BINARY = Path(__file__).parents[2] / "target" / "opa" / "opa"
_BUILD_SECONDS = 900


def opa_binary() -> Path:
    """The binary, built where it is missing (some minutes, once). Without Go, the test that asks is skipped."""
    if not BINARY.exists():
        if shutil.which("go") is None:
            pytest.skip("there is no Go to build opa with")
        command = ["go", "mod", "download", "-json", f"github.com/open-policy-agent/opa@{VERSION}"]
        module = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["Dir"]
        build = ["go", "build", "-C", module, "-o", str(BINARY), "."]
        subprocess.run(build, check=True, env={**os.environ, "CGO_ENABLED": "0"}, timeout=_BUILD_SECONDS)
    return BINARY


def opa(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``opa`` in `folder`."""
    return subprocess.run([opa_binary(), *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
