"""What policies say of connections without HTTP that can be neither evaluated nor left out.

An ALLOW rule that looks at requests matches no connection, as in Istio: it allows less, which is safe. A DENY rule that
does cannot be left out, which would let pass what it is for, and Istio's way, to match by its other fields, denies what
nobody said. A CUSTOM rule would ask a Rego policy about a request that is not there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from peltast.policies.kinds.authorization import Action, AuthorizationPolicySpec, Operation, Rule, Source
from peltast.policies.kinds.rate_limit import RateLimitPolicySpec
from peltast.policies.kinds.resource import Model, Resource
from peltast.policies.problems import Problem
from peltast.policies.sources.documents import FieldPath

__all__ = ["connection_problems", "limit_problems"]

_OF_REQUESTS = {
    Operation: ("hosts", "not_hosts", "methods", "not_methods", "paths", "not_paths"),
    Source: ("request_principals", "not_request_principals"),
}
_KEYS_OF_REQUESTS = "request."
_REMEDY = "leave the port out of the rule, with notPorts or in a rule of its own"


def connection_problems(
    policy: Resource[AuthorizationPolicySpec], workload: str, ports: Collection[int]
) -> Iterator[Problem]:
    """The problems of `policy`, which applies to `workload`, with those `ports` of its application that are TCP."""
    if policy.spec.action not in (Action.DENY, Action.CUSTOM):
        return
    for index, rule in enumerate(policy.spec.rules):
        if not (reached := _reached(rule, ports)):
            continue
        where = _where(reached, workload)
        if policy.spec.action is Action.CUSTOM:
            allowed = f"Rego policies are asked about HTTP requests: {_REMEDY}"
            yield policy.problem(("spec", "rules", index), f"the rule applies to {where}", allowed)
        for field in _fields_of_requests(rule, reached) if policy.spec.action is Action.DENY else ():
            allowed = f"the field is of HTTP requests, and a DENY rule is not left out: {_REMEDY}"
            yield policy.problem(("spec", "rules", index, *field), f"it is given for {where}", allowed)


def limit_problems(policy: Resource[RateLimitPolicySpec], workload: str, ports: Collection[int]) -> Iterator[Problem]:
    """The same of a RateLimitPolicy."""
    for place, limit in enumerate(policy.spec.limits):
        for index, rule in enumerate(limit.rules or [Rule()]):
            if reached := _reached(rule, ports):
                at: FieldPath = ("rules", index) if limit.rules else ()
                given = f"the limit is for {_where(reached, workload)}"
                allowed = f"HTTP requests are counted: {_REMEDY}"
                yield policy.problem(("spec", "limits", place, *at), given, allowed)


def _reached(rule: Rule, ports: Collection[int]) -> list[int]:
    return sorted(port for port in ports if any(_reaches(to, rule, port) for to in _alternatives(rule)))


def _where(reached: list[int], workload: str) -> str:
    return f"port {reached[0]} of {workload}, whose connections carry no HTTP"


def _alternatives(rule: Rule) -> list[Operation]:
    return [to.operation for to in rule.to or []] or [Operation()]


def _reaches(operation: Operation, rule: Rule, port: int) -> bool:
    """Whether ports do not keep the rule, with this alternative of ``to``, from a connection to `port`."""
    asked = [(operation.ports, operation.not_ports)]
    asked += [(when.values, when.not_values) for when in rule.when or [] if when.key == "destination.port"]
    return all((not some or str(port) in some) and str(port) not in none for some, none in asked)


def _fields_of_requests(rule: Rule, ports: list[int]) -> Iterator[FieldPath]:
    for index, source in enumerate(rule.from_ or []):
        yield from _given(source.source, ("from", index, "source"))
    for index, to in enumerate(rule.to or []):
        if any(_reaches(to.operation, rule, port) for port in ports):
            yield from _given(to.operation, ("to", index, "operation"))
    for index, when in enumerate(rule.when or []):
        if when.key.startswith(_KEYS_OF_REQUESTS):
            yield ("when", index, "key")


def _given(part: Source | Operation, at: FieldPath) -> Iterator[FieldPath]:
    for name in _OF_REQUESTS[type(part)]:
        if getattr(part, name):
            yield (*at, _alias(part, name))


def _alias(part: Model, name: str) -> str:
    return type(part).model_fields[name].alias or name
