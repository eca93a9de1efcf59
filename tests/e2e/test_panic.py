"""A panic in the module: that request is denied, and Envoy lives on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.http import Connection
from support.peer import context, svid_for
from support.running import CLIENT, EGRESS_PORT, SERVER, SIDECAR_PORT, RunningMesh, eventually

import peltast.proxy.sidecar.binary

ROOT = Path(__file__).parents[2]
MODULE = Path(peltast.proxy.sidecar.binary.__file__).parent.parent / "libpeltast_filter.so"
BUILD = [
    *("cargo", "build", "--profile", "quick", "--locked", "--quiet"),
    *("-p", "peltast-filter", "--features", "panic-for-tests"),
]


@pytest.fixture
def module_that_panics(tmp_path: Path) -> Iterator[None]:
    """In place of the module is one that panics where a request asks for it (`panic-for-tests`)."""
    subprocess.run(BUILD, cwd=ROOT, check=True)
    kept = tmp_path / "kept.so"
    shutil.copyfile(MODULE, kept)
    replace(ROOT / "target" / "quick" / "libpeltast_filter.so")
    yield
    replace(kept)


def replace(source: Path) -> None:
    """By way of a rename: a running Envoy keeps the file that it has mapped."""
    new = MODULE.with_suffix(".new")
    shutil.copyfile(source, new)
    new.replace(MODULE)


@pytest.mark.usefixtures("module_that_panics")
async def test_a_panic_closes_that_connection_and_envoy_lives(folder: Path, state: Path, tmp_path: Path) -> None:
    mesh_file = folder / "mesh.yaml"
    mesh_file.write_text(mesh_file.read_text().replace("targetPort: 8080", "targetPort: 8080, appProtocol: tcp"))
    (folder / "policies.yaml").unlink()
    async with RunningMesh(folder, state, "--concurrency", "1") as mesh:
        envoy = mesh.pid_of("--config-path", "sidecars/shop/server")
        tls = context(tmp_path / "peer", svid_for(state, "spiffe://cluster.local/ns/shop/sa/client"))
        answers = []
        for name in ["server", "panic.peltast.test"] * 3:
            reader, writer = await asyncio.open_connection(SERVER, SIDECAR_PORT, ssl=tls, server_hostname=name)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(len("HTTP/1.1")), 15)
            answers.append(answer)
            writer.close()
        assert answers == [b"HTTP/1.1", b""] * 3
        assert mesh.pid_of("--config-path", "sidecars/shop/server") == envoy
        database = await mesh.connect()

        async def on_record() -> bool:
            rows = await database.fetch("SELECT effect, reason FROM requests ORDER BY time")
            expected = [("allow", "no_allow_policy"), ("deny", "internal_error")] * 3
            return [tuple(row) for row in rows] == expected

        await eventually(on_record, "each is on record")
        await database.close()


@pytest.mark.usefixtures("module_that_panics")
async def test_a_panic_denies_that_request_and_envoy_lives(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        envoy = mesh.pid_of("--config-path", "sidecars/shop/server")
        connection = await Connection.open(CLIENT, EGRESS_PORT)
        statuses = [
            (await connection.ask("GET", "/open", {"x-peltast-panic": "now"} if number % 2 else {})).status
            for number in range(10)
        ]
        connection.close()
        assert statuses == [200, 500] * 5
        assert mesh.pid_of("--config-path", "sidecars/shop/server") == envoy
        database = await mesh.connect()

        async def on_record() -> bool:
            rows = await database.fetch("SELECT effect, reason FROM requests ORDER BY time")
            expected = [("allow", "allow_rule"), ("deny", "internal_error")] * 5
            return [tuple(row) for row in rows] == expected

        await eventually(on_record, "each is on record")
        await database.close()
