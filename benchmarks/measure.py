"""Load, CPU time, ratios: what every benchmark measures with."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 32
TURN_SECONDS = 0.05


@dataclass(frozen=True)
class Sample:
    """One run of load against one sidecar."""

    requests: int
    cpu_seconds: float

    @property
    def cpu_us(self) -> float:
        """CPU time of the sidecar for one request, in microseconds."""
        return self.cpu_seconds / self.requests * 1e6


@dataclass(frozen=True)
class Ratios:
    """Interleaved pairs of a variant and its baseline."""

    cpu: list[float]
    throughput: list[float]
    cpu_us: list[float]

    @classmethod
    def joined(cls, parts: Sequence[Ratios]) -> Ratios:
        """All of `parts` as one."""
        return cls(
            [each for part in parts for each in part.cpu],
            [each for part in parts for each in part.throughput],
            [each for part in parts for each in part.cpu_us],
        )

    @property
    def ratio(self) -> float:
        """Median ratio of CPU time a request."""
        return statistics.median(self.cpu)

    @property
    def spread(self) -> float:
        """Distance between the quartiles of that ratio."""
        lower, _, upper = statistics.quantiles(self.cpu, n=4)
        return upper - lower


def require_wrk() -> None:
    """Installs wrk from Debian's packages where it is missing and that can be done."""
    if shutil.which("wrk") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "--yes", "--quiet", "wrk"], check=True, stdout=subprocess.DEVNULL)
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed to make load: apt-get install wrk")


@dataclass(frozen=True)
class Target:
    """What is asked, and the process whose CPU time is measured."""

    url: str
    pid: int
    headers: Mapping[str, str]


def warm_up(target: Target, seconds: int) -> None:
    """Asks `target` with as many requests as are answered."""
    _answered(target, _wrk(target, seconds))


def measure(target: Target, seconds: int) -> Sample:
    """Asks `target` alone."""
    before = cpu_seconds(target.pid)
    requests = _answered(target, _wrk(target, seconds))
    return Sample(requests, cpu_seconds(target.pid) - before)


def interleaved(targets: tuple[Target, Target], seconds: int) -> tuple[Sample, Sample]:
    """Asks two targets in turns of some milliseconds, each for `seconds` in all.

    A shared machine's speed changes from second to second: so neither has a better time of it than the other.
    """
    before = [cpu_seconds(target.pid) for target in targets]
    clients = [_wrk(target, 2 * seconds) for target in targets]
    turns = itertools.cycle(clients)
    running = next(turns)
    clients[1].send_signal(signal.SIGSTOP)
    while all(client.poll() is None for client in clients):
        time.sleep(TURN_SECONDS)
        running.send_signal(signal.SIGSTOP)
        running = next(turns)
        running.send_signal(signal.SIGCONT)
    for client in clients:
        client.send_signal(signal.SIGCONT)
    answered = map(_answered, targets, clients)
    first, second = (
        Sample(requests, cpu_seconds(target.pid) - start)
        for requests, target, start in zip(list(answered), targets, before, strict=True)
    )
    return first, second


def _wrk(target: Target, seconds: int) -> subprocess.Popen[str]:
    options = [argument for name, value in target.headers.items() for argument in ("-H", f"{name}: {value}")]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", *options, target.url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _answered(target: Target, client: subprocess.Popen[str]) -> int:
    """How many requests were answered, once `client` has ended. That they were answered well is part of the claim."""
    output, _ = client.communicate()
    found = re.search(r"(\d+) requests in", output)
    if found is None or "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{target.url} is not answered as it should be:\n{output}")
    return int(found[1])


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of `pid`, to the nanosecond (`/proc/PID/task/*/schedstat`)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def pairs(number: int, baseline: Target, variant: Target, seconds: int) -> Ratios:
    """`number` pairs of interleaved runs, in turns first."""
    cpu, throughput, microseconds = [], [], []
    for index in range(number):
        if index % 2 == 0:
            base, other = interleaved((baseline, variant), seconds)
        else:
            other, base = interleaved((variant, baseline), seconds)
        cpu.append(other.cpu_us / base.cpu_us)
        throughput.append(other.requests / base.requests)
        microseconds.append(other.cpu_us)
    return Ratios(cpu, throughput, microseconds)
