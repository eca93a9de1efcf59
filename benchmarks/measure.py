"""Load, CPU time, ratios: what every benchmark measures with."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 32


@dataclass(frozen=True)
class Sample:
    """One run of load against one sidecar."""

    requests: int
    seconds: float
    cpu_seconds: float

    @property
    def cpu_us(self) -> float:
        """CPU time of the sidecar for one request, in microseconds."""
        return self.cpu_seconds / self.requests * 1e6

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


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


def load(url: str, pid: int, seconds: int, headers: Mapping[str, str]) -> Sample:
    """Asks for `url` with as many requests as are answered, and sees what CPU time the process `pid` spends on them."""
    options = [argument for name, value in headers.items() for argument in ("-H", f"{name}: {value}")]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", *options, url]
    before = cpu_seconds(pid)
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    spent = cpu_seconds(pid) - before
    if "Non-2xx" in result.stdout or "Socket errors" in result.stdout:
        raise SystemExit(f"{url} is not answered as it should be:\n{result.stdout}")
    found = re.search(r"(\d+) requests in ([\d.]+)(m?s)", result.stdout)
    assert found is not None, result.stdout
    return Sample(int(found[1]), float(found[2]) * (0.001 if found[3] == "ms" else 1), spent)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of `pid`, to the nanosecond (`/proc/PID/task/*/schedstat`)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def pairs(number: int, baseline: Callable[[], Sample], variant: Callable[[], Sample]) -> Ratios:
    """`number` pairs, the two of each right after one another, in turns first."""
    cpu, throughput, microseconds = [], [], []
    for index in range(number):
        order = (baseline, variant) if index % 2 == 0 else (variant, baseline)
        first, second = order[0](), order[1]()
        base, other = (first, second) if index % 2 == 0 else (second, first)
        cpu.append(other.cpu_us / base.cpu_us)
        throughput.append(other.throughput / base.throughput)
        microseconds.append(other.cpu_us)
    return Ratios(cpu, throughput, microseconds)
