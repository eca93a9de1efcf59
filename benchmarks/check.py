"""What the check service costs beside a real OPA server: CPU time of a question, of all processes that answer it.

Both evaluate the same small policy for the same request each time: a question's attributes reach the check service as a
CheckRequest, and OPA as the input that its Envoy plugin would make of it. Each claim is a median over pairs of
interleaved runs; the spread is the distance of the quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import uvloop
from asking import Answers, Ask, Asked, ask_for, post
from check_hang import MOST_EXTRA_MS, measure_hang
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from grpc_load import ask_over_grpc
from measure import cpu_seconds
from sidecar import ALLOW, REGO
from support.opa import BINARY, opa_binary
from support.peer import context, svid_for
from support.running import descendants

from peltast.authz.check.documents import check_revision
from peltast.authz.check.pool import EVALUATORS
from peltast.authz.revision import Revision, compile_revision
from peltast.cli.check_workers import CheckWorkers
from peltast.cli.readiness import takes_connections, wait_until
from peltast.cli.settings import ControlSettings
from peltast.identity.ca.authority import CONTROL_DNS_NAME
from peltast.identity.svid import save_svid
from peltast.policies.snapshot import load
from peltast.proxy.sidecar.supervise import dying_with_parent

CLIENT = "spiffe://cluster.local/ns/bench/sa/client"
SERVER = "spiffe://cluster.local/ns/bench/sa/server"
CONTROL = "spiffe://cluster.local/peltast/control"
BASE_PORT, PLAIN_PORT, OPA_PORT = 18010, 18020, 18021

WARM_UP_SECONDS = 1.0

MESH = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: server, namespace: bench, labels: {app: server}}
spec: {address: 127.0.31.250, serviceAccount: server}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: bench}
spec: {selector: {app: server}, ports: [{port: 8443, targetPort: 8080}]}
---
"""

HEADERS = {"x-user": "grace", "user-agent": "curl/8.5", "accept": "*/*", "x-request-id": "c0ffee00-1111-4222-8333-1"}


@dataclass(frozen=True)
class Result:
    """What came of a claim: requests for a second of CPU time, as a multiple of OPA's."""

    claim: str
    ratio: float
    least: float | None
    spread: float
    cpu_us: float

    @property
    def holds(self) -> bool:
        """Whether the ratio is at least what is claimed."""
        return self.least is None or self.ratio >= self.least


@dataclass(frozen=True)
class Server:
    """Something that answers: how it is asked for some seconds, and whose CPU time counts."""

    ask: Ask
    pids: Callable[[], Sequence[int]]

    def cpu_us(self, seconds: float) -> float:
        """CPU time of a question, in microseconds."""
        pids = self.pids()
        answers = self.ask(seconds, lambda: sum(map(cpu_seconds, pids)))
        return answers.cpu_seconds / answers.number * 1e6


def attributes() -> AttributeContext:
    """What is asked about, by a sidecar of ours as by any other."""
    http = AttributeContext.HttpRequest(
        method="GET", host="server.bench", path="/open/door?x=1", scheme="https", protocol="HTTP/1.1", headers=HEADERS
    )
    source = AttributeContext.Peer(principal=CLIENT)
    source.address.socket_address.address, source.address.socket_address.port_value = "127.0.0.1", 40000
    destination = AttributeContext.Peer(principal=SERVER)
    destination.address.socket_address.address, destination.address.socket_address.port_value = "127.0.31.250", 8443
    return AttributeContext(source=source, destination=destination, request=AttributeContext.Request(http=http))


def opa_input() -> bytes:
    """The same as the input of OPA's Envoy plugin."""

    def peer(principal: str, address: str, port: int) -> dict[str, object]:
        return {"principal": principal, "address": {"socketAddress": {"address": address, "portValue": port}}}

    http = {
        "method": "GET",
        "host": "server.bench",
        "path": "/open/door?x=1",
        "scheme": "https",
        "protocol": "HTTP/1.1",
        "headers": HEADERS,
    }
    document = {
        "attributes": {
            "source": peer(CLIENT, "127.0.0.1", 40000),
            "destination": peer(SERVER, "127.0.31.250", 8443),
            "request": {"http": http},
        },
        "parsed_path": ["open", "door"],
        "parsed_query": {"x": ["1"]},
        "truncated_body": False,
    }
    return json.dumps({"input": document}).encode()


def revision(policies: str) -> Revision:
    """What the check service decides by."""
    return compile_revision(load({"mesh.yaml": (MESH + policies).encode()}, "cluster.local", 1))


def module_and_data() -> tuple[str, str]:
    """The Rego policy's module and data."""
    (source,) = revision(ALLOW + REGO).snapshot.rego.values()
    (module,) = source.all_modules.values()
    return module, json.dumps(dict(source.all_data))


def allowed_by_us(asked: Asked) -> Ask:
    """Asks the check service, and looks at what all answers were."""

    def ask(seconds: float, cpu: Callable[[], float]) -> Answers:
        answers = ask_for(asked, seconds, cpu)
        for response in map(CheckResponse.FromString, answers.bodies):
            own = response.dynamic_metadata["peltast.dev"]
            assert (response.status.code, own["reason"], own["source"]) == (0, "allow_rule", "engine"), response
        return answers

    return ask


def allowed_by_opa(seconds: float, cpu: Callable[[], float]) -> Answers:
    """Asks OPA."""
    asked = Asked(OPA_PORT, post("/v1/data/access/allow", opa_input(), "application/json"))
    answers = ask_for(asked, seconds, cpu)
    assert all(json.loads(body) == {"result": True} for body in answers.bodies), answers.bodies
    return answers


@contextlib.contextmanager
def opa_server(folder: Path) -> Iterator[Server]:
    """The real one, with its own defaults, but that it does not log requests."""
    module, data = module_and_data()
    (folder / "access.rego").write_text(module)
    (folder / "data.json").write_text(data)
    command = [str(opa_binary()), "run", "--server", "--addr", f"127.0.0.1:{OPA_PORT}", "--skip-version-check"]
    with process([*command, "--log-level", "error", str(folder / "access.rego"), str(folder / "data.json")]) as opa:
        asyncio.run(wait_until(lambda: takes_connections("127.0.0.1", OPA_PORT), lambda: "OPA does not listen"))
        yield Server(allowed_by_opa, lambda: [opa.pid])


@contextlib.contextmanager
def plain_server(question: bytes) -> Iterator[Server]:
    """The check service without TLS."""
    command = [sys.executable, str(Path(__file__).with_name("check_plain.py")), str(PLAIN_PORT), SERVER]
    with process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as plain:
        assert plain.stdin is not None
        assert plain.stdout is not None
        plain.stdin.write(check_revision(revision(ALLOW + REGO)).SerializeToString())
        plain.stdin.close()
        plain.stdout.readline()
        yield Server(allowed_by_us(Asked(PLAIN_PORT, question)), lambda: with_children([plain.pid]))


@contextlib.contextmanager
def check_service(state: Path, policies: str) -> Iterator[Callable[[], list[int]]]:
    """The check service as the control plane runs it, with one worker; gives its processes."""
    save_svid(state / "control", svid_for(state, CONTROL))
    with asyncio.Runner() as runner:
        workers = CheckWorkers(ControlSettings(state, "cluster.local", BASE_PORT), 1, print)

        async def start() -> None:
            workers.take(revision(policies))
            await workers.ready()

        runner.run(start())
        try:
            yield lambda: with_children(workers.pids)
        finally:
            runner.run(workers.stop())


@contextlib.contextmanager
def process(command: list[str], **options: int) -> Iterator[subprocess.Popen[bytes]]:
    """One that ends with the context."""
    started = subprocess.Popen(dying_with_parent(command), **options)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def with_children(pids: Sequence[int]) -> list[int]:
    """`pids` and all processes below them."""
    return [each for pid in pids for each in (pid, *descendants(pid))]


def compare(claim: str, least: float | None, ours: Server, opa: Server, pairs: int, seconds: float) -> Result:
    """Measures one claim."""
    for server in (ours, opa):
        server.cpu_us(WARM_UP_SECONDS)
    ratios, microseconds = [], []
    for index in range(pairs):
        if index % 2:
            theirs, own = opa.cpu_us(seconds), ours.cpu_us(seconds)
        else:
            own, theirs = ours.cpu_us(seconds), opa.cpu_us(seconds)
        ratios.append(theirs / own)
        microseconds.append(own)
    lower, _, upper = statistics.quantiles(ratios, n=4)
    return Result(claim, statistics.median(ratios), least, upper - lower, statistics.median(microseconds))


def measure(folder: Path, pairs: int, seconds: float) -> Iterator[Result]:
    """Measures all claims."""
    question = post("/check", CheckRequest(attributes=attributes()).SerializeToString(), "application/x-protobuf")
    state = folder / "state"
    tls = context(folder, svid_for(state, SERVER))
    over_tls = Asked(BASE_PORT + 3, question, tls, CONTROL_DNS_NAME)
    grpc = ask_over_grpc(BASE_PORT + 1, state, svid_for(state, SERVER), CheckRequest(attributes=attributes()))
    with opa_server(folder) as opa:
        yield compare("OPA's own REST API, HTTP", None, opa, opa, 2, seconds)
        with plain_server(question) as plain:
            yield compare("HTTP", 2.0, plain, opa, pairs, seconds)
        with check_service(state, ALLOW + REGO) as pids:
            yield compare("HTTP, mutual TLS", 1.4, Server(allowed_by_us(over_tls), pids), opa, pairs, seconds)
            yield compare("gRPC, mutual TLS", None, Server(grpc, pids), opa, pairs, seconds)
        with check_service(state, ALLOW + REGO.replace("  entry", "  tier: check\n  timeout: 1s\n  entry")) as pids:
            server = Server(allowed_by_us(replace(over_tls, connections=EVALUATORS)), pids)
            yield compare("HTTP, mutual TLS, check tier", None, server, opa, pairs, seconds)


def show(result: Result) -> None:
    """Prints a row of the table."""
    least = "" if result.least is None else f"{result.least:.1f}x" + ("" if result.holds else "  BELOW")
    print(f"{result.claim:<40} {result.ratio:>6.2f}x {result.spread:>7.3f} {result.cpu_us:>7.1f}  {least}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object: claim -> ratio, least, spread")
    parser.add_argument("--check", action="store_true", help="exit 1 where a claim does not hold")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of runs a claim")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a run")
    options = parser.parse_args()
    results = []
    if not BINARY.exists() and shutil.which("go") is None:
        print("Left out: what OPA costs. The real opa is built with Go, which is not here.", file=sys.stderr)
    else:
        if not options.json:
            print(f"{'Requests for a second of CPU time, to OPA':<40} {'ratio':>7} {'spread':>7} {'us':>7}  at least")
        with tempfile.TemporaryDirectory(prefix="pb-") as folder:
            for result in measure(Path(folder), options.pairs, options.seconds):
                results.append(result)
                if not options.json:
                    show(result)
    hang = uvloop.run(measure_hang())
    if options.json:
        table = {each.claim: {"ratio": each.ratio, "least": each.least, "spread": each.spread} for each in results}
        print(json.dumps({**table, "one policy hangs, ms": vars(hang)}))
    else:
        print(
            f"while one policy hangs: others answered within {hang.others_ms:.2f} ms (99 %), {hang.usual_ms:.2f} ms "
            f"with none that hangs; at most {MOST_EXTRA_MS} ms more. Answered {hang.late_ms:.1f} ms after its timeout"
        )
    if options.check and not (all(result.holds for result in results) and hang.holds):
        sys.exit(1)


if __name__ == "__main__":
    main()
