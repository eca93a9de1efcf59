"""The real OPA, as a server that is asked about one module after the other."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.opa import opa_binary
from support.rego.outcome import ERROR, UNDEFINED, Outcome

_TIME_LIMIT_SECONDS = 30


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("opa", timeout=_TIME_LIMIT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Opa:
    """A server of one's own. It answers about the module that it was given last."""

    def __init__(self, path: Path) -> None:
        self._connection = _Connection(path)

    def take(self, module: str) -> bool:
        """Whether it compiles `module`."""
        status, _ = self._ask("PUT", "/v1/policies/p", module)
        return status == http.client.OK

    def put_data(self, data: Mapping[str, Any]) -> None:
        """Puts each member of `data` below `data`."""
        for name, value in data.items():
            self._ask("PUT", f"/v1/data/{name}", json.dumps(value))

    def answer(self, given: str) -> Outcome:
        """What `data.p.answer` is."""
        status, answer = self._ask("POST", "/v1/data/p/answer", f'{{"input": {given}}}')
        if status != http.client.OK:
            return ERROR
        return answer.get("result", UNDEFINED)

    def _ask(self, method: str, path: str, body: str) -> tuple[int, Any]:
        self._connection.request(method, path, body.encode())
        response = self._connection.getresponse()
        answer = response.read()
        return response.status, json.loads(answer) if answer else {}


def _listens(path: Path) -> bool:
    """The socket is there a moment before it can be connected to."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextmanager
def running_opa(folder: Path) -> Iterator[Opa]:
    """Starts one with its socket in `folder`, and ends it."""
    path = folder / "opa.sock"
    command = [
        opa_binary(),
        "run",
        "--server",
        "--addr",
        f"unix://{path}",
        "--log-level",
        "error",
        "--disable-telemetry",
    ]
    process = subprocess.Popen(command, cwd=folder)
    try:
        deadline = time.monotonic() + _TIME_LIMIT_SECONDS
        while not _listens(path):
            assert process.poll() is None, "opa ended"
            assert time.monotonic() < deadline, "opa does not listen"
            time.sleep(0.02)
        yield Opa(path)
    finally:
        process.terminate()
        process.wait(_TIME_LIMIT_SECONDS)
