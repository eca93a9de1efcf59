"""From the rules of policies to conditions on attributes, as the engine reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from peltast.authz.canonical import Json
from peltast.policies.kinds.authorization import Condition, Operation, Rule, Source, is_template

__all__ = ["Scope", "rule"]

_OWN_TRUST_DOMAIN = "cluster.local"
"""In a policy, the mesh's own trust domain, whatever it is called."""

Matcher = Callable[[str], Json | str]


@dataclass(frozen=True)
class Scope:
    """What names in a policy are relative to."""

    namespace: str
    trust_domains: Sequence[str]
    """The mesh's trust domain and its aliases."""


def rule(given: Rule, scope: Scope) -> Json:
    """One rule: alternatives of sources, alternatives of operations, and conditions."""
    return {
        "from": [source_conditions(alternative.source, scope) for alternative in given.from_ or []],
        "to": [operation_conditions(alternative.operation) for alternative in given.to or []],
        "when": [when_condition(each, scope) for each in given.when or []],
    }


def source_conditions(source: Source, scope: Scope) -> list[Json]:
    """What `source` asks of a request, all of which must hold."""
    account = partial(service_account, scope.namespace)
    named = principals(source.principals, scope), principals(source.not_principals, scope)
    return present(
        condition("source.principal", *named),
        condition("request.auth.principal", source.request_principals, source.not_request_principals),
        condition("source.namespace", source.namespaces, source.not_namespaces),
        condition("source.serviceAccount", source.service_accounts, source.not_service_accounts, account),
        condition("source.ip", source.ip_blocks, source.not_ip_blocks, address),
        condition("remote.ip", source.remote_ip_blocks, source.not_remote_ip_blocks, address),
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


def when_condition(given: Condition, scope: Scope) -> Json:
    """One condition of a ``when``."""
    matchers: dict[str, Matcher] = {
        "source.ip": address,
        "remote.ip": address,
        "destination.ip": address,
        "destination.port": exact,
        "source.serviceAccount": partial(service_account, scope.namespace),
    }
    values, not_values = given.values, given.not_values
    if given.key == "source.principal":
        values, not_values = principals(values, scope), principals(not_values, scope)
    lowered = condition(given.key, values, not_values, matchers.get(given.key, text))
    assert lowered is not None, "the kind demands values"
    return lowered


def condition(
    attribute: str, any_of: Sequence[str], none_of: Sequence[str], matcher: Matcher | None = None
) -> Json | None:
    """A condition on one attribute; none where it asks nothing."""
    if not any_of and not none_of:
        return None
    match = matcher or text
    return {"attribute": attribute, "any": list(map(match, any_of)), "none": list(map(match, none_of))}


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


def principals(values: Sequence[str], scope: Scope) -> list[str]:
    """Principals, each of the mesh in all of its trust domains.

    As in Istio's trust domain migration: ``cluster.local`` stands for the mesh's own, and a name of another mesh, or
    one that begins with ``*/``, is left as it is.
    """
    if not values:
        return []
    return list(dict.fromkeys(each for value in values for each in in_trust_domains(value, scope.trust_domains)))


def in_trust_domains(principal: str, trust_domains: Sequence[str]) -> list[str]:
    """`principal` with each of `trust_domains`, if it is of one of them; else itself."""
    given, slash, rest = principal.partition("/")
    suffix = given.removeprefix("*")

    def is_meant(domain: str) -> bool:
        return domain == given or (suffix != given and domain.endswith(suffix))

    is_ours = given == _OWN_TRUST_DOMAIN or any(map(is_meant, trust_domains))
    if not slash or given == "*" or not is_ours:
        return [principal]
    return [principal if is_meant(domain) else f"{domain}/{rest}" for domain in trust_domains]


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
