"""A mesh that runs for a test: `peltast up` as a user starts it, watched by its output and by /proc."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import asyncpg

DEADLINE_SECONDS = 40.0
PELTAST = [sys.executable, "-m", "peltast.cli.main"]

CLIENT, SERVER = "127.0.20.1", "127.0.20.2"
EGRESS_PORT, SIDECAR_PORT, APPLICATION_PORT = 15001, 8443, 8080
BASE_PORT = 17010

MESH = f"""
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: client, namespace: shop}}
spec: {{address: {CLIENT}, labels: {{app: client}}, serviceAccount: client}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: server, namespace: shop}}
spec: {{address: {SERVER}, labels: {{app: server}}, serviceAccount: server}}
---
apiVersion: v1
kind: Service
metadata: {{name: server, namespace: shop}}
spec:
  selector: {{app: server}}
  ports: [{{port: {SIDECAR_PORT}, targetPort: {APPLICATION_PORT}}}]
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {{name: client, namespace: shop}}
spec:
  workload: client
  command: [sleep, "86400"]
  egress: [{{service: server, port: {EGRESS_PORT}}}]
---
apiVersion: peltast.dev/v1
kind: WorkloadRegistration
metadata: {{name: server, namespace: shop}}
spec:
  workload: server
  command: [python, "{Path(__file__).with_name("echo.py")}"]
  environment: {{LISTEN: "{SERVER}:{APPLICATION_PORT}", SEEN: "@SEEN@"}}
"""

ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
      to: [{operation: {methods: [GET], paths: [/open*]}}]
"""

DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules:
    - to: [{operation: {paths: [/open/closed]}}]
"""


async def eventually(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Waits until `condition` (plain or asynchronous) gives something true, and gives that."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        value = await value if asyncio.iscoroutine(value) else value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.02)


class RunningMesh:
    """`peltast up` on `folder`. Use as an asynchronous context manager."""

    def __init__(
        self,
        folder: Path,
        state: Path,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        tmpfs: tuple[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.state = state
        self.output = ""
        self._arguments = arguments
        self._tmpfs = tmpfs
        self._environment = {**os.environ, "COLUMNS": "300", **(environment or {})}

    async def __aenter__(self) -> RunningMesh:
        await self.start()
        try:
            await eventually(lambda: "Ready." in self.output or self.process.returncode is not None, "the mesh is up")
            assert self.process.returncode is None, f"it ended with {self.process.returncode}: {self.output}"
        except BaseException:
            await self.__aexit__("not ready")
            raise
        return self

    async def start(self) -> None:
        """Starts it, and does not wait."""
        command = [*PELTAST, "up", str(self.folder), "--state", str(self.state), "--base-port", str(BASE_PORT)]
        self.process = await asyncio.create_subprocess_exec(
            *self._on_a_small_disk(),
            *command,
            *self._arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read())

    def _on_a_small_disk(self) -> list[str]:
        """Where `tmpfs` names a folder of the state and a size: a wrapper that makes it a disk of that size."""
        if self._tmpfs is None:
            return []
        place = self.state / self._tmpfs[0]
        place.mkdir()
        mount = f'mount -t tmpfs -o size={self._tmpfs[1]},mode=700 tmpfs "{place}" && exec "$@"'
        return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]

    async def __aexit__(self, failure: object = None, *_: object) -> None:
        if failure is not None:
            self._show_logs()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self.process.wait(), 15)
        finally:
            if self.process.returncode is None:
                self.process.kill()
        await self._reading

    def _show_logs(self) -> None:
        """Prints the ends of all logs, which go with the state: pytest shows them beside the failure."""
        print("== peltast up", *self.output.splitlines()[-40:], sep="\n")
        for file in [*self.state.glob("logs/*.log"), *self.state.glob("sidecars/*/*/envoy.log")]:
            print(f"== {file.relative_to(self.state)}", *file.read_text().splitlines()[-20:], sep="\n")

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while chunk := await self.process.stdout.read(65536):
            self.output += chunk.decode()

    async def connect(self) -> asyncpg.Connection[Any]:
        """A connection as the auditor."""
        return await asyncpg.connect(f"postgresql://peltast_auditor@/postgres?host={self.state}/run/pg")

    def pid_of(self, *words: str) -> int:
        """The one process of this mesh whose command line has all of `words`."""
        found = self.pids_of(*words)
        assert len(found) == 1, f"{words}: {[command_line(pid) for pid in found]}"
        return found[0]

    def pids_of(self, *words: str) -> list[int]:
        """The processes of this mesh whose command lines have all of `words`."""
        return [pid for pid in self.processes() if all(word in command_line(pid) for word in words)]

    def processes(self) -> list[int]:
        """Every process below this mesh's own."""
        return descendants(self.process.pid)


def descendants(pid: int) -> list[int]:
    """The processes below `pid`, of all generations."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, frontier = [], [pid]
    while frontier:
        frontier = [child for parent in frontier for child in parents.get(parent, [])]
        found += frontier
    return found


def command_line(pid: int) -> str:
    """The command line of `pid`; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
