"""What a quota costs in the inbound sidecar: CPU time of each request, as a ratio to the same sidecar without it.

Local, its bucket is in the sidecar; by lease, its tokens are borrowed of a quota service over mutual TLS. Both are
counted by caller, and nothing is refused. Each claim is a median over pairs of interleaved runs; the spread is the
distance of the quartiles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import grpc
from measure import require_wrk
from sidecar import ALLOW, Claim, run_claim, show
from sidecars import CONTROL, Bench, Variant

from peltast.authz.quota.counters import MemoryCounters
from peltast.authz.quota.grpc import LEASES, policy_lease_methods
from peltast.authz.quota.policy_leases import PolicyLeases
from peltast.identity.ca.authority import CONTROL_DNS_NAME
from peltast.identity.rpc import caller, generic_handler, server_options
from peltast.proxy.xds.compile import QUOTA_CLUSTER, socket_address, static_cluster
from peltast.proxy.xds.tls import upstream

ADDRESS, PORT = "127.0.30.4", 9192
START_SECONDS = 10
MOST = 1.03
HEADING = f"{'CPU time a request, to no quota':<50} {'ratio':>7} {'spread':>7} {'us':>7} {'throughput':>11}  limit"

QUOTA = """
---
apiVersion: peltast.dev/v1
kind: RateLimitPolicy
metadata: {name: callers, namespace: bench}
spec:
  scope: @SCOPE@
  selector: {matchLabels: {app: server}}
  limits: [{name: caller, by: [source.principal], rates: [{requests: 10000000, per: 1s}]}]
"""
"""Far more than is asked: what is measured is what is let through."""


def claims() -> list[Claim]:
    """Every claim."""
    none = Variant(ALLOW)
    cluster = static_cluster(
        QUOTA_CLUSTER, [socket_address(ADDRESS, PORT)], "grpc", upstream([CONTROL], CONTROL_DNS_NAME)
    )
    by_lease = Variant(ALLOW + QUOTA.replace("@SCOPE@", "global"), clusters=[cluster])
    local = Variant(ALLOW + QUOTA.replace("@SCOPE@", "local"))
    return [
        Claim("a quota by lease", by_lease, MOST, baseline=none),
        Claim("a quota in the sidecar", local, MOST, baseline=none),
    ]


@contextmanager
def quota_service(bench: Bench) -> Iterator[PolicyLeases]:
    """Lends tokens from a thread, over mutual TLS, while the context lasts."""
    leases, loop, serving, stop = (
        PolicyLeases(MemoryCounters()),
        asyncio.new_event_loop(),
        threading.Event(),
        asyncio.Event(),
    )
    leases.take(bench.snapshot(ALLOW + QUOTA.replace("@SCOPE@", "global")))

    async def serve() -> None:
        server = grpc.aio.server(options=server_options)
        server.add_generic_rpc_handlers((generic_handler(LEASES, policy_lease_methods(leases, caller)),))
        server.add_secure_port(f"{ADDRESS}:{PORT}", bench.control_credentials())
        await server.start()
        serving.set()
        await stop.wait()
        await server.stop(grace=None)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    if not serving.wait(START_SECONDS):
        raise SystemExit(f"the quota service does not serve on {ADDRESS}:{PORT}")
    try:
        yield leases
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object: claim -> ratio, limit, spread")
    parser.add_argument("--check", action="store_true", help="exit 1 where a ratio is over its limit")
    parser.add_argument("--pairs", type=int, default=4, help="pairs of runs a round")
    parser.add_argument("--rounds", type=int, default=6, help="rounds a claim, each with sidecars of its own")
    parser.add_argument("--seconds", type=int, default=1, help="length of a run")
    options = parser.parse_args()
    require_wrk()
    results = []
    with tempfile.TemporaryDirectory(prefix="pb-") as folder, Bench(Path(folder)) as bench, quota_service(bench):
        if not options.json:
            print(HEADING)
        for claim in claims():
            results.append(run_claim(bench, claim, options.rounds, options.pairs, options.seconds))
            if not options.json:
                show(results[-1])
    if options.json:
        print(
            json.dumps(
                {each.claim: {"ratio": each.ratio, "limit": each.limit, "spread": each.spread} for each in results}
            )
        )
    if options.check and not all(result.holds for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
