from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from peltast.proxy.sidecar.supervise import Supervised, dying_with_parent

DEADLINE_SECONDS = 20.0

IGNORES_SIGTERM = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text("ready")
while True:
    time.sleep(60)
"""

SUPERVISOR = """
import asyncio, os, sys
from pathlib import Path
from peltast.proxy.sidecar.supervise import Supervised

async def environment():
    return os.environ

async def main():
    child = Supervised("child", ["sleep", "600"], environment, Path(sys.argv[1]) / "log")
    running = asyncio.create_task(child.run())
    while child.pid is None:
        await asyncio.sleep(0.01)
    print(child.pid, flush=True)
    await running

asyncio.run(main())
"""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another process
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process of this id runs; one that is dead and not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


@contextlib.asynccontextmanager
async def running(child: Supervised) -> AsyncIterator[asyncio.Task[None]]:
    """Runs `child`; one that ends at once may be between two runs at any time."""
    task = asyncio.create_task(child.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def pid_of(child: Supervised) -> int:
    await until(lambda: child.pid is not None)
    assert child.pid is not None
    return child.pid


async def path_only() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


def supervised(tmp_path: Path, *command: str, **more: object) -> Supervised:
    return Supervised("child", command, path_only, tmp_path / "log", **more)  # type: ignore[arg-type]


async def test_the_environment_is_asked_for_at_every_start(tmp_path: Path) -> None:
    starts: list[int] = []

    async def numbered() -> dict[str, str]:
        starts.append(len(starts))
        return {"PATH": os.environ["PATH"], "START": str(starts[-1])}

    log = tmp_path / "log"
    async with running(Supervised("child", ["sh", "-c", "echo start $START"], numbered, log)):
        await until(lambda: log.exists() and "start 1" in log.read_text())


async def test_a_killed_child_is_started_again(tmp_path: Path) -> None:
    child = supervised(tmp_path, "sleep", "600")
    async with running(child):
        first = await pid_of(child)
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in (None, first))
        assert not is_alive(first)
        assert child.pid is not None
        assert is_alive(child.pid)


async def test_a_child_that_ends_by_itself_is_started_again(tmp_path: Path) -> None:
    child = supervised(tmp_path, "sh", "-c", f"echo run >> {tmp_path}/runs; exit 3")
    async with running(child):
        await until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").read_text().count("run") >= 2)


async def test_a_cancelled_run_ends_the_child(tmp_path: Path) -> None:
    child = supervised(tmp_path, "sleep", "600")
    async with running(child) as task:
        pid = await pid_of(child)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not is_alive(pid)
    assert child.pid is None


async def test_a_child_that_ignores_sigterm_is_ended_too(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = supervised(tmp_path, sys.executable, "-c", IGNORES_SIGTERM, str(ready))
    async with running(child) as task:
        await until(ready.exists)
        pid = await pid_of(child)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not is_alive(pid)


async def test_the_signal_to_stop_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    lines = "trap 'echo interrupted; exit' USR1; echo ready; while true; do sleep 0.01; done"
    child = supervised(tmp_path, "sh", "-c", lines, stop_signal=signal.SIGUSR1)
    log = tmp_path / "log"
    async with running(child):
        await until(lambda: log.exists() and "ready" in log.read_text())
    assert "interrupted" in log.read_text()


async def test_output_environment_and_folder_are_the_childs(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    async def environment() -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "ONLY": "this"}

    lines = "pwd; env; echo problem >&2; sleep 600"
    log = tmp_path / "log"
    child = Supervised("child", ["sh", "-c", lines], environment, log, folder)
    async with running(child):
        await until(lambda: log.exists() and "problem" in log.read_text())
    output = log.read_text().splitlines()
    assert output[0] == str(folder)
    assert "ONLY=this" in output
    assert not [line for line in output if line.startswith("HOME=")]


def test_a_child_dies_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        assert is_alive(pid)
        supervisor.kill()
        supervisor.wait(DEADLINE_SECONDS)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} outlived its supervisor"
        time.sleep(0.01)


def test_a_command_that_dies_with_its_parent_is_still_the_command() -> None:
    result = subprocess.run(dying_with_parent(["echo", "a b", "--c"]), capture_output=True, text=True, check=True)
    assert result.stdout == "a b --c\n"
