"""The real envoyproxy/ratelimit, built from its Go module; and configurations and requests drawn at random."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.receivers import accepts, free_port, until

ROOT = Path(__file__).parents[2]
BINARY = ROOT / "target" / "ratelimit" / "service_cmd"

needs_ratelimit = pytest.mark.skipif(
    not BINARY.exists(), reason="envoyproxy/ratelimit is not built: `make ratelimit`, which needs Go"
)


@contextmanager
def running(folder: Path, files: dict[str, str], redis_port: int) -> Iterator[int]:
    """The port where it answers by `files`, counting in the Redis at `redis_port`."""
    configuration = folder / "ratelimit" / "config"
    configuration.mkdir(parents=True)
    for name, text in files.items():
        (configuration / name).write_text(text)
    port, http, debug = free_port(), free_port(), free_port()
    settings = {
        "RUNTIME_ROOT": folder,
        "RUNTIME_SUBDIRECTORY": "ratelimit",
        "USE_STATSD": "false",
        "DISABLE_STATS": "true",
        "REDIS_SOCKET_TYPE": "tcp",
        "REDIS_URL": f"127.0.0.1:{redis_port}",
        "LIMIT_RESPONSE_HEADERS_ENABLED": "true",
        "GRPC_HOST": "127.0.0.1",
        "GRPC_PORT": port,
        "HOST": "127.0.0.1",
        "PORT": http,
        "DEBUG_HOST": "127.0.0.1",
        "DEBUG_PORT": debug,
        "LOG_LEVEL": "ERROR",
    }
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    process = subprocess.Popen([str(BINARY)], env=environment)
    try:
        until(lambda: accepts(port), process)
        yield port
    finally:
        process.kill()
        process.wait()


KEYS = ["user", "path", "user_a", "to"]
VALUES = ["", "a", "b", "ab", "/pay", "/pa"]
UNITS = ["second", "MINUTE", "hour", "Day", "week", "month", "year"]


def domain(choose: random.Random, name: str) -> dict[str, Any]:
    """A configuration that both take."""
    names: list[str] = []
    descriptors = _descriptors(choose, 3, names)
    return {"domain": name, "descriptors": descriptors}


def _descriptors(choose: random.Random, depth: int, names: list[str]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for _ in range(choose.randint(1, 6)):
        key, value = choose.choice(KEYS), choose.choice([*VALUES, "*", "a*", "/p*"])
        joined = f"{key}_{value}" if value else key
        if joined not in found:
            found[joined] = {"key": key, **({"value": value} if value else {}), **_contents(choose, depth, names)}
    return list(found.values())


def _contents(choose: random.Random, depth: int, names: list[str]) -> dict[str, Any]:
    contents: dict[str, Any] = {}
    if choose.random() < 0.8:
        contents |= {"rate_limit": _limit(choose, names), "shadow_mode": choose.random() < 0.2}
    if depth > 1 and choose.random() < 0.6:
        contents["descriptors"] = _descriptors(choose, depth - 1, names)
    return contents


def _limit(choose: random.Random, names: list[str]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    if names and choose.random() < 0.3:
        named["replaces"] = [{"name": choose.choice(names)}]  # of those before: so none replaces itself in the end
    if choose.random() < 0.5:
        named["name"] = f"limit{len(names)}"
        names.append(named["name"])
    if choose.random() < 0.1:
        return {"unlimited": True, **named}
    return {"unit": choose.choice(UNITS), "requests_per_unit": choose.choice([0, 1, 2, 3, 5, 100, 2**32 - 1]), **named}


def to_yaml(configuration: dict[str, Any]) -> str:
    return yaml.safe_dump(configuration, sort_keys=False)


def request(choose: random.Random, configuration: dict[str, Any]) -> dict[str, Any]:
    """A request to a domain, as JSON: mostly one that its configuration speaks of."""
    descriptors = [_descriptor(choose, configuration) for _ in range(choose.choice([1, 1, 2, 3]))]
    return {
        "domain": configuration["domain"],
        "descriptors": descriptors,
        "hitsAddend": choose.choice([0, 0, 0, 1, 2, 4]),
    }


def _descriptor(choose: random.Random, configuration: dict[str, Any]) -> dict[str, Any]:
    descriptor: dict[str, Any] = {"entries": list(_entries(choose, configuration))}
    if choose.random() < 0.1:
        descriptor["hitsAddend"] = choose.choice([0, 1, 3])
    if choose.random() < 0.05:
        unit = choose.choice([unit.upper() for unit in UNITS if unit != "week"])
        descriptor["limit"] = {"requestsPerUnit": choose.choice([0, 2, 9]), "unit": unit}
    return descriptor


def _entries(choose: random.Random, configuration: dict[str, Any]) -> Iterator[dict[str, str]]:
    node = configuration
    while node.get("descriptors"):
        node = choose.choice(node["descriptors"])
        key, value = node["key"], node.get("value", choose.choice(VALUES))
        if choose.random() < 0.1:
            key = choose.choice(KEYS)
        yield {"key": key, "value": value.replace("*", choose.choice(["", "y", "zzz"]))}
        if choose.random() < 0.4:
            return
