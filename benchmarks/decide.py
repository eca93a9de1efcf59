"""What a decision costs in the engine alone: CPU time in nanoseconds, and as a share of one request in a sidecar.

The engine is measured by `authz/engine/benches/decide.rs` on programs that the real compiler made. The policy that
matches is the last of all: none is found sooner by luck.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from measure import Target, measure, require_wrk, warm_up
from sidecars import Bench, Variant
from support.issuer import Issuer

from peltast.authz.compile import compile_keys, compile_program
from peltast.policies.snapshot import Snapshot, Workload, load
from peltast.proxy.xds.module import deflated

FEW, MANY = 10, 10_000
UNSEEN_TOKENS = 400
REQUESTS = 2_000
ROUNDS = 5
"""In turns, so that none has a better time of a shared machine than the others."""

MEGABYTE = 1_000_000
ENGINE = ["cargo", "bench", "--quiet", "--locked", "-p", "peltast-engine", "--bench", "decide", "--"]
CLIENT = "spiffe://cluster.local/ns/bench/sa/client"

MESH = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: server, namespace: bench, labels: {app: server}}
spec: {address: 127.0.0.2, serviceAccount: server}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: bench}
spec: {selector: {app: server}, ports: [{port: 8443, targetPort: 8080}]}
"""

POLICY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: @NAME@, namespace: bench}
spec:
  rules:
    - from: [{source: {principals: [cluster.local/ns/bench/sa/@ACCOUNT@]}}]
      to: [{operation: {methods: [GET], paths: [/@PATH@/*]}}]
"""

TOKENS = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: bench}
spec:
  jwtRules: [{issuer: https://bench.example, audiences: [shop], jwks: '@JWKS@'}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: claims, namespace: bench}
spec:
  rules:
    - to: [{operation: {paths: [/open/*]}}]
      when: [{key: "request.auth.claims[groups]", values: [readers]}]
"""


@dataclass(frozen=True)
class Figure:
    """Something that was measured, in `unit`, and what it may be at most."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is within its limit."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True)
class Measured:
    """What the engine tells of one run."""

    uncached_ns: float
    cached_ns: float
    bytes: int


def policies(number: int) -> str:
    """`number` policies, of which the last matches what is asked."""
    others = [(f"p{index:05}", f"other-{index}", f"data-{index}") for index in range(number - 1)]
    texts = [
        POLICY.replace("@NAME@", name).replace("@ACCOUNT@", account).replace("@PATH@", path)
        for name, account, path in [*others, ("z", "client", "open")]
    ]
    return "".join(texts)


def parsed(text: str) -> tuple[Snapshot, Workload]:
    """A mesh with the policies of `text`, and the workload that they are for."""
    snapshot = load({"mesh.yaml": (MESH + text).encode()}, "cluster.local", 1)
    return snapshot, snapshot.workloads["bench/server"]


class Engine:
    """The engine with one program and requests to it."""

    def __init__(self, folder: Path, snapshot: Snapshot, workload: Workload, number: int, tokens: list[str]) -> None:
        """Asks `number` requests to `workload`, which carry `tokens` in turns."""
        folder.mkdir()
        requests = [
            {"principal": CLIENT, "path": f"/open/{index}", "token": tokens[index % len(tokens)] if tokens else None}
            for index in range(number)
        ]
        documents = {
            "program": compile_program(snapshot, workload),
            "keys": compile_keys(snapshot, workload, {}),
            "requests": json.dumps(requests).encode(),
        }
        self._files = [folder / name for name in documents]
        for name, document in documents.items():
            (folder / name).write_bytes(document)
        self.measured: list[Measured] = []

    def measure(self) -> None:
        """Measures once more."""
        output = subprocess.run([*ENGINE, *self._files], check=True, stdout=subprocess.PIPE).stdout
        self.measured.append(Measured(**json.loads(output)))

    @property
    def cached_ns(self) -> float:
        """A decision that is in memory, at its fastest."""
        return min(each.cached_ns for each in self.measured)

    @property
    def uncached_ns(self) -> float:
        """A decision that is not, at its fastest."""
        return min(each.uncached_ns for each in self.measured)


def seconds_to_compile(snapshot: Snapshot, workload: Workload) -> float:
    """CPU time."""
    start = time.process_time()
    compile_program(snapshot, workload)
    return time.process_time() - start


def figures(folder: Path) -> list[Figure]:
    """Everything about the engine."""
    few, many = parsed(policies(FEW)), parsed(policies(MANY))
    issuer = Issuer("https://bench.example")
    with_claims = parsed(TOKENS.replace("@JWKS@", issuer.jwks()))
    tokens = [issuer.token(groups=["readers"], jti=str(index)) for index in range(UNSEEN_TOKENS)]
    engines = [
        Engine(folder / "few", *few, REQUESTS, []),
        Engine(folder / "many", *many, REQUESTS, []),
        Engine(folder / "seen", *with_claims, UNSEEN_TOKENS, tokens[:1]),
        Engine(folder / "unseen", *with_claims, UNSEEN_TOKENS, tokens),
        Engine(folder / "full", *few, MANY, []),
    ]
    for _ in range(ROUNDS):
        for each in engines:
            each.measure()
    of_few, of_many, seen, unseen, full = engines
    return [
        Figure("cached, 10 policies", of_few.cached_ns, "ns"),
        Figure("cached, 10,000 policies", of_many.cached_ns, "ns"),
        Figure("cached, 10,000 policies to 10", of_many.cached_ns / of_few.cached_ns, "x", 1.03),
        Figure("uncached, 10 policies", of_few.uncached_ns, "ns"),
        Figure("uncached, 10,000 policies", of_many.uncached_ns, "ns"),
        Figure("uncached, 10,000 policies to 10", of_many.uncached_ns / of_few.uncached_ns, "x", 3),
        Figure("cached, RS256 token and claim", seen.cached_ns, "ns"),
        Figure("uncached, RS256 token seen before", seen.uncached_ns, "ns"),
        Figure("uncached, RS256 token not seen before", unseen.uncached_ns, "ns"),
        Figure("10,000 cached decisions", full.measured[0].bytes / MEGABYTE, "MB", 10),
        Figure("10,000 policies to a program", min(seconds_to_compile(*many) for _ in range(ROUNDS)), "s", 1),
        Figure("program of 10,000 policies", len(deflated(compile_program(*many))) / MEGABYTE, "MB", 1),
    ]


def request_ns(folder: Path) -> float:
    """CPU time that a sidecar with mTLS only spends on one request."""
    require_wrk()
    with Bench(folder) as bench, bench.sidecar(Variant()) as sidecar:
        target = Target(f"{sidecar.url}/open/door", sidecar.pid, {})
        warm_up(target, 2)
        return min(measure(target, 1).cpu_us for _ in range(5)) * 1000


def show(figure: Figure, request: float) -> None:
    """Prints a row of the table."""
    share = f"{figure.value / request:.2%}" if figure.unit == "ns" else ""
    limit = "" if figure.limit is None else f"{figure.limit:g} {figure.unit}" + ("" if figure.holds else "  OVER")
    print(f"{figure.name:<40} {figure.value:>12,.2f} {figure.unit:<3} {share:>10}  {limit}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object: figure -> value, unit, limit")
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure is over its limit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pb-") as folder:
        found = figures(Path(folder))
        request = request_ns(Path(folder))
    if options.json:
        every = [*found, Figure("one request, mTLS only", request, "ns")]
        print(json.dumps({each.name: {"value": each.value, "unit": each.unit, "limit": each.limit} for each in every}))
    else:
        print(f"{'the engine alone':<40} {'':>16} {'of request':>10}  limit")
        for figure in found:
            show(figure, request)
        print(f"one request in a sidecar with mTLS only: {request / 1000:.1f} us of CPU time")
    if options.check and not all(figure.holds for figure in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
