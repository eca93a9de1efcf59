"""AuthorizationPolicy, as Istio writes it.

https://istio.io/latest/docs/reference/config/security/authorization-policy/
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from enum import StrEnum

from pydantic import Field
from pydantic.alias_generators import to_camel

from peltast.policies.kinds.resource import Model
from peltast.policies.kinds.selection import TargetedSpec
from peltast.policies.sources.documents import FieldPath

__all__ = [
    "CONDITION_KEYS",
    "Action",
    "AuthorizationPolicySpec",
    "Condition",
    "Operation",
    "Provider",
    "Rule",
    "Source",
    "is_condition_key",
    "is_template",
    "rule_problems",
    "template_problems",
]

Finding = tuple[FieldPath, str, str]

CONDITION_KEYS = (
    "request.headers[NAME]",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[NAME]",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "destination.ip",
    "destination.port",
    "connection.sni",
)
_PLAIN_KEYS = frozenset(key for key in CONDITION_KEYS if "[" not in key)
_ADDRESS_KEYS = frozenset(key for key in CONDITION_KEYS if key.endswith(".ip"))
_KEY_WITH_ARGUMENT = re.compile(r"request\.headers\[[!#$%&'*+.^_`|~0-9A-Za-z-]+\]|request\.auth\.claims(\[[^\[\]]+\])+")

_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")
_TEMPLATE = re.compile(r"(/(\{\*\}|[^/{}*]*))*(/\{\*\*\}(/[^/{}*]*)*)?")
_TEMPLATE_EXPECTED = "{*} and {**} are whole segments, {**} is the last of them, and * is nowhere else"
_BRACES = re.compile("[{}]")
_ONE_STAR = re.compile(r"\*?[^*]*|[^*]*\*")
_NOT_IN_RULES = {
    "experimental.envoy.filters.": "there are no such filters: the engine reads no dynamic metadata of Envoy",
    "destination.namespace": "a policy is for its own namespace",
    "destination.labels": "a policy's selector says this",
}
"""Keys that Istio knows, by their beginnings, and why a rule cannot have them."""
_SERVICE_ACCOUNT = re.compile(r"(?!.{321})([^/*\s]+/)?[^/*\s]+")
_MAX_SERVICE_ACCOUNTS = 16
_NOT_WITH_SERVICE_ACCOUNTS = ("principals", "not_principals", "namespaces", "not_namespaces")


def is_template(path: str) -> bool:
    """Whether a rule's path has operators of a template."""
    return "{*}" in path or "{**}" in path


def is_condition_key(key: str) -> bool:
    """Whether a rule may have a condition on `key`."""
    return key in _PLAIN_KEYS or _KEY_WITH_ARGUMENT.fullmatch(key) is not None


class Action(StrEnum):
    """What a policy does with the requests that it matches."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    CUSTOM = "CUSTOM"
    AUDIT = "AUDIT"

    @property
    def can_be_tried(self) -> bool:
        """Whether a policy can be on trial (dry-run): it decides by its rules alone."""
        return self in (Action.ALLOW, Action.DENY)


class Provider(Model):
    """Who decides for a CUSTOM policy: a RegoPolicy, as ``name`` or ``namespace/name``."""

    name: str = Field(min_length=1)


class Source(Model):
    """Where a request comes from."""

    principals: list[str] = []
    not_principals: list[str] = []
    request_principals: list[str] = []
    not_request_principals: list[str] = []
    namespaces: list[str] = []
    not_namespaces: list[str] = []
    service_accounts: list[str] = []
    not_service_accounts: list[str] = []
    ip_blocks: list[str] = []
    not_ip_blocks: list[str] = []
    remote_ip_blocks: list[str] = []
    not_remote_ip_blocks: list[str] = []


class Operation(Model):
    """What a request wants."""

    hosts: list[str] = []
    not_hosts: list[str] = []
    ports: list[str] = []
    not_ports: list[str] = []
    methods: list[str] = []
    not_methods: list[str] = []
    paths: list[str] = []
    not_paths: list[str] = []


class From(Model):
    """One alternative of a rule's ``from``."""

    source: Source


class To(Model):
    """One alternative of a rule's ``to``."""

    operation: Operation


class Condition(Model):
    """One condition of a rule's ``when``."""

    key: str
    values: list[str] = []
    not_values: list[str] = []


class Rule(Model):
    """Matches what comes from one of `from_`, to one of `to`, under all of `when`; what is left out matches all."""

    from_: list[From] | None = Field(default=None, alias="from")
    to: list[To] | None = None
    when: list[Condition] | None = None


class AuthorizationPolicySpec(TargetedSpec):
    """The spec of an AuthorizationPolicy."""

    action: Action = Action.ALLOW
    provider: Provider | None = None
    rules: list[Rule] = []

    def problems(self) -> list[Finding]:
        """See :meth:`Spec.problems`."""
        return [*self.target_problems(), *self._provider_problems(), *rule_problems(self.rules, ("rules",))]

    def _provider_problems(self) -> Iterator[Finding]:
        if self.action is Action.CUSTOM and self.provider is None:
            yield (("provider",), "nothing is given", "action CUSTOM needs provider.name, the name of a RegoPolicy")
        if self.action is not Action.CUSTOM and self.provider is not None:
            yield (("provider",), f"given with action {self.action}", "only action CUSTOM has a provider")
        if self.action is not Action.ALLOW and not self.rules:
            yield (("rules",), "no rules are given", f"a {self.action} policy without rules would never match")


def rule_problems(rules: list[Rule], at: FieldPath) -> Iterator[Finding]:
    """What is wrong with `rules`, which are given at `at`."""
    for index, rule in enumerate(rules):
        place = (*at, index)
        for name, alternatives in (("from", rule.from_), ("to", rule.to), ("when", rule.when)):
            if alternatives == []:
                yield ((*place, name), "an empty list is given", "leave it out where it does not restrict")
        for number, source in enumerate(rule.from_ or []):
            yield from _source_problems(source.source, (*place, "from", number, "source"))
        for number, operation in enumerate(rule.to or []):
            yield from _operation_problems(operation.operation, (*place, "to", number, "operation"))
        for number, condition in enumerate(rule.when or []):
            yield from _condition_problems(condition, (*place, "when", number))


def _source_problems(source: Source, at: FieldPath) -> Iterator[Finding]:
    if not source.model_fields_set:
        yield (at, "nothing is given", "a source names at least one of principals, namespaces, ipBlocks, …")
    yield from _empty_values(source, at)
    accounts = (("serviceAccounts", source.service_accounts), ("notServiceAccounts", source.not_service_accounts))
    for name, given in accounts:
        if given and not source.model_fields_set.isdisjoint(_NOT_WITH_SERVICE_ACCOUNTS):
            yield ((*at, name), "given with principals or namespaces", "a source has the one or the others")
        yield from _service_account_problems(given, (*at, name))
    for name in ("ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks"):
        yield from _address_problems(getattr(source, name), (*at, to_camel(name)))
    for name, namespaces in (("namespaces", source.namespaces), ("notNamespaces", source.not_namespaces)):
        yield from _namespace_problems(namespaces, (*at, name))


def _operation_problems(operation: Operation, at: FieldPath) -> Iterator[Finding]:
    if not operation.model_fields_set:
        yield (at, "nothing is given", "an operation names at least one of hosts, ports, methods, paths, …")
    yield from _empty_values(operation, at)
    for name, ports in (("ports", operation.ports), ("notPorts", operation.not_ports)):
        yield from _port_problems(ports, (*at, name))
    for name, paths in (("paths", operation.paths), ("notPaths", operation.not_paths)):
        yield from template_problems([path if _BRACES.search(path) else "/" for path in paths], (*at, name))


def template_problems(paths: list[str], at: FieldPath) -> Iterator[Finding]:
    """What is wrong with `paths`, which are templates and given at `at`."""
    for index, path in enumerate(paths):
        if not _TEMPLATE.fullmatch(path):
            yield ((*at, index), f"{path!r} is given", _TEMPLATE_EXPECTED)


def _condition_problems(condition: Condition, at: FieldPath) -> Iterator[Finding]:
    for beginning, reason in _NOT_IN_RULES.items():
        if condition.key.startswith(beginning):
            yield ((*at, "key"), f"{condition.key!r} is given", f"it is not taken: {reason}")
            return
    if not is_condition_key(condition.key):
        yield ((*at, "key"), f"{condition.key!r} is given", f"one of {', '.join(CONDITION_KEYS)} is expected")
    if not condition.values and not condition.not_values:
        yield (at, "no values are given", "a condition needs values or notValues")
    yield from _empty_values(condition, at)
    if condition.key == "source.serviceAccount":
        yield from _service_account_problems(condition.values, (*at, "values"))
        yield from _service_account_problems(condition.not_values, (*at, "notValues"))
    if condition.key == "source.namespace":
        yield from _namespace_problems(condition.values, (*at, "values"))
        yield from _namespace_problems(condition.not_values, (*at, "notValues"))
    if condition.key in _ADDRESS_KEYS:
        yield from _address_problems(condition.values, (*at, "values"))
        yield from _address_problems(condition.not_values, (*at, "notValues"))
    if condition.key == "destination.port":
        yield from _port_problems(condition.values, (*at, "values"))
        yield from _port_problems(condition.not_values, (*at, "notValues"))


def _empty_values(part: Model, at: FieldPath) -> Iterator[Finding]:
    for name, field in type(part).model_fields.items():
        values = getattr(part, name)
        if values == [] and name in part.model_fields_set:
            yield ((*at, field.alias or name), "an empty list is given", "leave it out where it does not restrict")
        for index, value in enumerate(values if isinstance(values, list) else []):
            if value == "":
                yield ((*at, field.alias or name, index), "an empty text is given", '"*" matches any value')


def _port_problems(ports: list[str], at: FieldPath) -> Iterator[Finding]:
    """Ports are compared as text: what is written otherwise than a port is would never match."""
    for index, port in enumerate(ports):
        if not (_NUMBER.fullmatch(port) and 0 < int(port) < 65536):
            yield ((*at, index), f"{port!r} is given", 'a port from "1" to "65535" is expected')


def _namespace_problems(namespaces: list[str], at: FieldPath) -> Iterator[Finding]:
    """No namespace has a star in it; in Istio, one anywhere stands for anything."""
    for index, namespace in enumerate(namespaces):
        if not _ONE_STAR.fullmatch(namespace):
            yield ((*at, index), f"{namespace!r} is given", "a * at the beginning or at the end is expected")


def _service_account_problems(accounts: list[str], at: FieldPath) -> Iterator[Finding]:
    if len(accounts) > _MAX_SERVICE_ACCOUNTS:
        yield (at, f"{len(accounts)} are given", f"at most {_MAX_SERVICE_ACCOUNTS} are allowed")
    for index, account in enumerate(accounts):
        if not _SERVICE_ACCOUNT.fullmatch(account):
            yield ((*at, index), f"{account!r} is given", "ACCOUNT or NAMESPACE/ACCOUNT is expected, without wildcards")


def _address_problems(blocks: list[str], at: FieldPath) -> Iterator[Finding]:
    for index, block in enumerate(blocks):
        if (reason := _not_a_block(block)) is not None:
            yield ((*at, index), f"{block!r} is given", reason)


def _not_a_block(block: str) -> str | None:
    """Why the engine would not read `block`, or never match it; none where it is sound."""
    expected = "an address or a CIDR block is expected"
    text, slash, length = block.partition("/")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return expected
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return expected
        if address.ipv4_mapped is not None:
            return "an IPv4 address inside IPv6 is matched as the IPv4 address: write that"
    if slash and not (_NUMBER.fullmatch(length) and int(length) <= address.max_prefixlen):
        return expected
    return None
