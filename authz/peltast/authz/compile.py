"""From a snapshot to what the engine loads: one program and one document of key sets for each workload.

Pure: the same snapshot and workload give the same bytes, whose SHA-256 names the program everywhere. The form is
described in `authz/engine/src/document.rs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from peltast.policies.kinds.authentication import JwtRule, RequestAuthenticationSpec
from peltast.policies.kinds.authorization import (
    Action,
    AuthorizationPolicySpec,
    Condition,
    Operation,
    Rule,
    Source,
    is_template,
)
from peltast.policies.kinds.resource import Resource
from peltast.policies.snapshot import RegoSource, Snapshot, Workload, provider_name

__all__ = ["compile_keys", "compile_program", "compile_rego"]

SCHEMA = 1

Json = dict[str, Any]
Matcher = Callable[[str], Json | str]


def compile_program(snapshot: Snapshot, workload: Workload) -> bytes:
    """The canonical document of the program that decides requests to `workload`."""
    policies = list(snapshot.applying_to(workload, AuthorizationPolicySpec))
    return canonical(
        {
            "schema": SCHEMA,
            "workload": {
                "principal": workload.principal,
                "ports": {str(port.port): port.target_port for port in workload.ports},
                "plaintext": [port.port for port in workload.ports if workload.takes_plaintext(port.port)],
            },
            "authentication": [
                authentication(rule, key_set_name(resource, index))
                for resource, index, rule in jwt_rules(snapshot, workload)
            ],
            "rego": [rego_policy(snapshot.rego[name]) for name in providers(policies)],
            "policies": [policy(resource) for resource in policies],
        }
    )


def compile_keys(snapshot: Snapshot, workload: Workload) -> bytes:
    """The canonical document of the key sets that verify tokens sent to `workload`."""
    rules = jwt_rules(snapshot, workload)
    return canonical({key_set_name(resource, index): json.loads(rule.jwks) for resource, index, rule in rules})


def compile_rego(source: RegoSource) -> bytes:
    """A program of nothing but one Rego policy, to find out whether it is admitted."""
    nobody = {"principal": "spiffe://nobody/", "ports": {}}
    rego = [rego_policy(source)]
    return canonical({"schema": SCHEMA, "workload": nobody, "authentication": [], "rego": rego, "policies": []})


def canonical(document: Json) -> bytes:
    """JSON with one way to write it."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


# Tokens ---------------------------------------------------------------------------------------------------------------


def jwt_rules(snapshot: Snapshot, workload: Workload) -> list[tuple[Resource[RequestAuthenticationSpec], int, JwtRule]]:
    """Every rule for tokens sent to `workload`, with its resource and its place there."""
    return [
        (resource, index, rule)
        for resource in snapshot.applying_to(workload, RequestAuthenticationSpec)
        for index, rule in enumerate(resource.spec.jwt_rules)
    ]


def key_set_name(resource: Resource[RequestAuthenticationSpec], index: int) -> str:
    """The name by which a program and its key sets know a rule's keys."""
    return f"{resource.full_name}[{index}]"


def authentication(rule: JwtRule, keys: str) -> Json:
    """One rule for tokens."""
    return {
        "issuer": rule.issuer,
        "audiences": rule.audiences,
        "forward_original_token": rule.forward_original_token,
        "keys": keys,
    }


# Rego -----------------------------------------------------------------------------------------------------------------


def providers(policies: Iterable[Resource[AuthorizationPolicySpec]]) -> list[str]:
    """The Rego policies that `policies` ask, each once."""
    names = {
        provider_name(resource.namespace, resource.spec.provider.name)
        for resource in policies
        if resource.spec.provider is not None
    }
    return sorted(names)


def rego_policy(source: RegoSource) -> Json:
    """One Rego policy with its modules and data."""
    spec = source.resource.spec
    return {
        "name": source.resource.full_name,
        "modules": dict(source.modules),
        "data": dict(source.data),
        "entrypoint": spec.entrypoint,
        "tier": spec.tier.value,
        "on_error": spec.on_error.value,
        "timeout_ms": spec.timeout_value // timedelta(milliseconds=1),
    }


# Rules ----------------------------------------------------------------------------------------------------------------


def policy(resource: Resource[AuthorizationPolicySpec]) -> Json:
    """One AuthorizationPolicy."""
    spec = resource.spec
    lowered: Json = {
        "name": resource.full_name,
        "action": spec.action.value,
        "rules": [rule(each, resource.namespace) for each in spec.rules],
    }
    if spec.action is Action.CUSTOM and spec.provider is not None:
        lowered["provider"] = provider_name(resource.namespace, spec.provider.name)
    return lowered


def rule(given: Rule, namespace: str) -> Json:
    """One rule of a policy in `namespace`: alternatives of sources, alternatives of operations, and conditions."""
    return {
        "from": [source_conditions(alternative.source, namespace) for alternative in given.from_ or []],
        "to": [operation_conditions(alternative.operation) for alternative in given.to or []],
        "when": [when_condition(each, namespace) for each in given.when or []],
    }


def source_conditions(source: Source, namespace: str) -> list[Json]:
    """What `source`, of a policy in `namespace`, asks of a request, all of which must hold."""
    account = partial(service_account, namespace)
    return present(
        condition("source.principal", source.principals, source.not_principals),
        condition("request.auth.principal", source.request_principals, source.not_request_principals),
        condition("source.namespace", source.namespaces, source.not_namespaces),
        condition("source.serviceAccount", source.service_accounts, source.not_service_accounts, account),
        condition("source.ip", source.ip_blocks, source.not_ip_blocks, address),
    )


def operation_conditions(operation: Operation) -> list[Json]:
    """What `operation` asks of a request, all of which must hold."""
    lower = [host.lower() for host in operation.hosts], [host.lower() for host in operation.not_hosts]
    return present(
        condition("request.host", *lower),
        condition("destination.port", operation.ports, operation.not_ports, exact),
        condition("request.method", operation.methods, operation.not_methods),
        condition("request.path", operation.paths, operation.not_paths, path),
    )


def when_condition(given: Condition, namespace: str) -> Json:
    """One condition of a ``when`` of a policy in `namespace`."""
    matchers: dict[str, Matcher] = {
        "source.ip": address,
        "destination.ip": address,
        "destination.port": exact,
        "source.serviceAccount": partial(service_account, namespace),
    }
    lowered = condition(given.key, given.values, given.not_values, matchers.get(given.key, text))
    assert lowered is not None, "the kind demands values"
    return lowered


def condition(
    attribute: str, any_of: Sequence[str], none_of: Sequence[str], matcher: Matcher | None = None
) -> Json | None:
    """A condition on one attribute; none where it asks nothing."""
    if not any_of and not none_of:
        return None
    match = matcher or text
    return {"attribute": attribute, "any": [match(v) for v in any_of], "none": [match(v) for v in none_of]}


def present(*conditions: Json | None) -> list[Json]:
    """The conditions that ask something."""
    return [each for each in conditions if each is not None]


def text(value: str) -> Json | str:
    """A value as Istio writes it: ``*`` alone is presence, at an end it is a suffix or prefix, elsewhere itself."""
    if value == "*":
        return "present"
    if value.startswith("*"):
        return {"suffix": value[1:]}
    if value.endswith("*"):
        return {"prefix": value[:-1]}
    return {"exact": value}


def path(value: str) -> Json | str:
    """A path, perhaps with the operators of a template."""
    return {"template": value} if is_template(value) else text(value)


def service_account(namespace: str, value: str) -> Json:
    """A service account, of `namespace` where it names none."""
    return exact(value if "/" in value else f"{namespace}/{value}")


def exact(value: str) -> Json:
    """A value that is taken as it is."""
    return {"exact": value}


def address(value: str) -> Json:
    """An address or a block of them."""
    is_block = "/" in value
    whole = "128" if ":" in value else "32"
    return {"cidr": value if is_block else f"{value}/{whole}"}
