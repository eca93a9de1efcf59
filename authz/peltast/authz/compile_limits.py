"""From RateLimitPolicies to the limits of a program."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from peltast.authz.canonical import Json
from peltast.authz.compile_rules import Scope, rule
from peltast.policies.kinds.rate_limit import PATH_TEMPLATE, Limit, RateLimitPolicySpec
from peltast.policies.kinds.resource import Resource
from peltast.policies.snapshot import Snapshot, Workload

__all__ = ["rate_limits"]


def rate_limits(snapshot: Snapshot, workload: Workload) -> list[Json]:
    """Every RateLimitPolicy for `workload`."""
    return [
        rate_limit(resource, snapshot.trust_domains, snapshot.target_ports(resource, workload))
        for resource in snapshot.applying_to(workload, RateLimitPolicySpec)
    ]


def rate_limit(
    resource: Resource[RateLimitPolicySpec], trust_domains: Sequence[str], service_ports: Sequence[int]
) -> Json:
    """One RateLimitPolicy; `service_ports` are those that it is for, where it is for services."""
    spec, scope = resource.spec, Scope(resource.namespace, trust_domains)
    return {
        "name": resource.full_name,
        "on_error": spec.on_error.value,
        "limits": [limit(each, index, scope) for index, each in enumerate(spec.limits)],
        **({"dry_run": True} if spec.dry_run else {}),
        **({"scope": spec.scope.value} if spec.is_global else {}),
        **({"service_ports": list(service_ports)} if spec.targets else {}),
    }


def limit(given: Limit, index: int, scope: Scope) -> Json:
    """One limit. Clients are told its name, or its place where it has none: a policy's name is not theirs to know."""
    name = given.name or f"limit-{index}"
    names = [name] if len(given.rates) == 1 else [f"{name}-{rate.per}" for rate in given.rates]
    return {
        "rules": [rule(each, scope) for each in given.rules],
        "by": [key for key in given.by if key != PATH_TEMPLATE],
        **({"templates": given.path_templates} if given.path_templates else {}),
        "rates": [
            {
                "name": name,
                "requests": rate.requests,
                "period_ms": rate.period // timedelta(milliseconds=1),
                "burst": rate.at_once,
            }
            for name, rate in zip(names, given.rates, strict=True)
        ],
    }
