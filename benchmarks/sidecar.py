"""What a decision costs in the inbound sidecar: CPU time of each request, as a ratio to the same Envoy with mTLS only.

What its records cost is a ratio to the same sidecar without them. Each claim is a median over pairs of interleaved
runs; the spread is the distance of the quartiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from check_service import check_cluster, ext_authz
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from google.protobuf.json_format import ParseDict
from measure import Ratios, Target, pairs, require_wrk, warm_up
from propagation import measure_propagation
from sidecars import CONTROL, Bench, Variant
from support.issuer import Issuer

POLICIES = 1000
WITHOUT_TOKEN, WITH_TOKEN = "cached decision, audit", "JWT, claim rule, cached, audit"
WARM_UP_SECONDS = 5
"""Until both of a spool's segments were written once: from then on a sidecar touches no new memory."""

HEADING = f"{'CPU time a request, to mTLS only':<50} {'ratio':>7} {'spread':>7} {'us':>7} {'throughput':>11}  limit"

MTLS_ONLY = Variant()

ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: open, namespace: bench}
spec:
  selector: {matchLabels: {app: server}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/bench/sa/client]}}]
      to: [{operation: {methods: [GET], paths: [/open/*]}}]
"""

TOKENS = """
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: bench}
spec:
  selector: {matchLabels: {app: server}}
  jwtRules: [{issuer: https://bench.example, audiences: [shop], jwks: '@JWKS@', forwardOriginalToken: true}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: claims, namespace: bench}
spec:
  selector: {matchLabels: {app: server}}
  rules:
    - to: [{operation: {paths: [/open/*]}}]
      when: [{key: "request.auth.claims[groups]", values: [readers]}]
"""

REGO = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: asks, namespace: bench}
spec:
  selector: {matchLabels: {app: server}}
  action: CUSTOM
  provider: {name: roles}
  rules: [{to: [{operation: {paths: [/open/*]}}]}]
---
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: roles, namespace: bench}
spec:
  entrypoint: data.access.allow
  data: {grants: {reader: [GET, HEAD], writer: [GET, PUT]}, roles: {ada: [reader], grace: [reader, writer]}}
  module: |
    package access
    import rego.v1
    default allow := false
    allow if {
      headers := input.attributes.request.http.headers
      some role in data.roles[headers["x-user"]]
      input.attributes.request.http.method in data.grants[role]
    }
"""


@dataclass(frozen=True)
class Claim:
    """A variant, what it may cost at most (if that is claimed), what its requests carry, and beside what it is put."""

    name: str
    variant: Variant
    limit: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    baseline: Variant = MTLS_ONLY


@dataclass(frozen=True)
class Result:
    """What came of a claim."""

    claim: str
    ratio: float
    limit: float | None
    spread: float
    cpu_us: float | None = None
    throughput: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the ratio is within its limit."""
        return self.limit is None or self.ratio <= self.limit


def claims() -> list[Claim]:
    """Every claim."""
    issuer = Issuer("https://bench.example")
    token = {"authorization": f"Bearer {issuer.token(groups=['writers', 'readers'])}"}
    tokens = TOKENS.replace("@JWKS@", issuer.jwks())
    return [
        Claim(WITHOUT_TOKEN, Variant(ALLOW), 1.12),
        Claim("audit: two records, to none", Variant(ALLOW), 1.10, baseline=Variant(ALLOW, records=False)),
        Claim(WITH_TOKEN, Variant(tokens.removeprefix("\n---")), 1.15, token),
        Claim("Rego on every request, audit", Variant(ALLOW + REGO), 1.7, {"x-user": "grace"}),
        Claim("1,000 policies, cached, audit", Variant(thousand_policies() + "---" + ALLOW), 1.12),
        Claim("Envoy's RBAC, the same 1,000 policies, no audit", Variant(filters=[thousand_policies_of_envoy()])),
        Claim(
            "ext_authz over gRPC to our check service, no audit",
            Variant(filters=[ext_authz()], clusters=[check_cluster(CONTROL)]),
        ),
    ]


def cost_of_a_token(results: Sequence[Result]) -> Result:
    """What a token that was seen before costs, with a rule about a claim, beside the same without."""
    by_claim = {each.claim: each for each in results}
    without, with_token = by_claim[WITHOUT_TOKEN], by_claim[WITH_TOKEN]
    return Result(
        "JWT seen before, to none", with_token.ratio / without.ratio, 1.05, max(without.spread, with_token.spread)
    )


def thousand_policies() -> str:
    """Policies of which none matches."""
    policy = (
        ALLOW.replace("name: open", "name: p@N@").replace("sa/client", "sa/other-@N@").replace("/open", "/data/@N@")
    )
    return "---".join(policy.replace("@N@", str(number)) for number in range(POLICIES))


def thousand_policies_of_envoy() -> HttpFilter:
    """The same, and the one that matches, as Istio gives them to Envoy."""

    def policy(account: str, prefix: str) -> dict[str, object]:
        methods = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
        path = {"url_path": {"path": {"prefix": prefix}}}
        principal = {"authenticated": {"principal_name": {"exact": f"spiffe://cluster.local/ns/bench/sa/{account}"}}}
        return {"permissions": [{"and_rules": {"rules": [methods, path]}}], "principals": [principal]}

    policies = {f"p{number}": policy(f"other-{number}", f"/data/{number}/") for number in range(POLICIES)}
    rules = {"action": "ALLOW", "policies": {**policies, "z": policy("client", "/open/")}}
    http_filter = HttpFilter(name="envoy.filters.http.rbac")
    http_filter.typed_config.Pack(ParseDict({"rules": rules}, RBAC()))
    return http_filter


def run_claim(bench: Bench, claim: Claim, rounds: int, number: int, seconds: int) -> Result:
    """Measures one claim."""
    measured = [run_round(bench, claim, index % 2 == 0, number, seconds) for index in range(rounds)]
    ratios = Ratios.joined(measured)
    return Result(
        claim.name,
        ratios.ratio,
        claim.limit,
        ratios.spread,
        statistics.median(ratios.cpu_us),
        statistics.median(ratios.throughput),
    )


def run_round(bench: Bench, claim: Claim, baseline_first: bool, number: int, seconds: int) -> Ratios:
    """Measures one claim with sidecars that are started for it.

    Where a process comes to lie in memory changes its speed by some per cent, for as long as it lives.
    """
    variants = (claim.baseline, claim.variant) if baseline_first else (claim.variant, claim.baseline)
    with bench.sidecar(variants[0]) as first, bench.sidecar(variants[1]) as second:
        targets = [Target(f"{each.url}/open/door", each.pid, claim.headers) for each in (first, second)]
        for target in targets:
            warm_up(target, WARM_UP_SECONDS)
        baseline, variant = targets if baseline_first else reversed(targets)
        return pairs(number, baseline, variant, seconds)


def show(result: Result) -> None:
    """Prints a row of the table."""
    limit = "" if result.limit is None else f"{result.limit:.2f}x" + ("" if result.holds else "  OVER")
    microseconds = "" if result.cpu_us is None else f"{result.cpu_us:.1f}"
    throughput = "" if result.throughput is None else f"{result.throughput:.2f}x"
    print(f"{result.claim:<50} {result.ratio:>6.2f}x {result.spread:>7.3f} {microseconds:>7} {throughput:>11}  {limit}")


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
    with tempfile.TemporaryDirectory(prefix="pb-") as folder, Bench(Path(folder)) as bench:
        if not options.json:
            print(HEADING)
        with bench.check_service(ALLOW):
            for claim in claims():
                results.append(run_claim(bench, claim, options.rounds, options.pairs, options.seconds))
                if not options.json:
                    show(results[-1])
    results.append(cost_of_a_token(results))
    if not options.json:
        show(results[-1])
    propagation = measure_propagation()
    if options.json:
        table = {each.claim: {"ratio": each.ratio, "limit": each.limit, "spread": each.spread} for each in results}
        print(json.dumps({**table, "file to decision on every worker, ms": vars(propagation)}))
    else:
        took = f"median {propagation.median_ms:.0f} ms, worst {propagation.worst_ms:.0f} ms"
        print(f"from writing a file to deciding by it on every worker, under load: {took}")
    if options.check and not all(result.holds for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
