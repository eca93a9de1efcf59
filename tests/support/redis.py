"""A real redis-server for tests, alone or as a cluster of one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from support.receivers import free_port, until

REDIS_SERVER = shutil.which("redis-server", path="/usr/bin:/usr/local/bin:/bin")

needs_redis = pytest.mark.skipif(REDIS_SERVER is None, reason="redis-server is not installed")


@contextmanager
def redis_server(folder: Path, *, cluster: bool = False, port: int | None = None) -> Iterator[int]:
    """The port of a server that keeps nothing on disk, and answers."""
    port = port or free_port()
    command = [str(REDIS_SERVER), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    if cluster:
        command += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, socket_timeout=5) as client:
            until(lambda: _answers(client), process)
            if cluster:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), process)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
