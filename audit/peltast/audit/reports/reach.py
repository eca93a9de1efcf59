"""Who can call whom: what the engine says of two workloads and a port, whatever is asked.

Of a call that is not made yet, the two identities and the port are known; the path, the headers, a token are not. So
the engine is asked twice, by two programs that are made from the workload's: in one everything unknown is as good for
the caller as can be, in the other as bad. Denied by the first is *never*; allowed by the second is *always*; all else
is *sometimes*, and the rules that leave it open are named. It may be that of *sometimes* no request comes true (a rule
allows GET, another denies it): that two conditions on one unknown exclude each other is not looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from peltast.authz._engine import Decider, Decision, KeySets, Program, Request, Revocations
from peltast.authz.canonical import canonical
from peltast.authz.revision import Revision
from peltast.authz.revocations import NO_REVOCATIONS
from peltast.policies.kinds.workload import TCP, ServicePort
from peltast.policies.snapshot import Workload

__all__ = ["Reach", "Target", "Verdict", "reaches"]

Json = dict[str, Any]

_OF_PAIRS = frozenset(
    {"source.principal", "source.namespace", "source.serviceAccount", "destination.ip", "destination.port"}
)
_NO_VALUE: Json = {"attribute": "destination.port", "any": [{"exact": "none"}], "none": []}
"""A condition that never holds."""

_NO_KEYS = KeySets.load(b"{}")
_NO_REVOCATIONS = Revocations.load(NO_REVOCATIONS)


class Verdict(StrEnum):
    """Whether calls are allowed."""

    ALWAYS = "always"
    SOMETIMES = "sometimes"
    NEVER = "never"


@dataclass(frozen=True)
class Reach:
    """Whether `source`, a SPIFFE ID or none in plaintext, can call a workload at a port."""

    source: str | None
    workload: Workload
    port: ServicePort
    verdict: Verdict
    why: tuple[str, ...]


def reaches(revision: Revision) -> Iterator[Reach]:
    """Every identity of the mesh against every workload and port; and plaintext, where a port takes it.

    A port that takes no mutual TLS sees no identity, whoever calls.
    """
    identities = sorted({workload.principal for workload in revision.snapshot.workloads.values()})
    for name, workload in revision.snapshot.workloads.items():
        document = json.loads(revision.programs[name])
        for port in workload.ports:
            target = Target(document, workload, port)
            anybody = [None] if workload.takes_plaintext(port.port) else []
            for source in (*anybody, *(identities if workload.takes_mtls(port.port) else [])):
                yield Reach(source, workload, port, *target.ask(source))


@dataclass(frozen=True)
class _Rule:
    """A rule that an answer may depend on, by itself."""

    policy: str
    action: str
    index: int
    program: Program
    open: tuple[str, ...]
    """The unknown attributes that it looks at."""

    def __str__(self) -> str:
        when = f": by {', '.join(self.open)}" if self.open else ""
        return f"{self.action} {self.policy}[{self.index}]{when}"


class Target:
    """A port of a workload, ready to be asked about callers."""

    def __init__(self, document: Json, workload: Workload, port: ServicePort) -> None:
        self._document = document
        self._workload = workload
        self._port = port
        self._decider = Decider()
        # On trial and AUDIT decide nothing.
        enforced = (policy for policy in document["policies"] if not policy.get("dry_run"))
        self._policies = [policy for policy in enforced if policy["action"] != "AUDIT"]
        self._best = self._load([self._assuming(policy, good=True) for policy in self._policies])
        self._worst = self._load([self._assuming(policy, good=False) for policy in self._policies])

    def ask(self, source: str | None) -> tuple[Verdict, tuple[str, ...]]:
        """The verdict on `source`, and what it rests on."""
        best = self._decide(self._best, source)
        if not best.allowed:
            return Verdict.NEVER, (_told(best),)
        worst = self._decide(self._worst, source)
        if worst.allowed and not self._tokens:
            return Verdict.ALWAYS, (_told(worst),)
        open_rules = (str(rule) for rule in self._rules if self._may_match(rule, source))
        return Verdict.SOMETIMES, (*self._tokens, *open_rules)

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        """What is asked of tokens, whatever policies say."""
        rules = self._document["authentication"]
        if not rules or self._is_tcp:
            return ()
        return ("a valid token" if any(rule["require"] for rule in rules) else "no token, or a valid one",)

    @property
    def _is_tcp(self) -> bool:
        return self._port.app_protocol == TCP

    def _is_known(self, attribute: str) -> bool:
        if attribute in _OF_PAIRS:
            return True
        # The engine knows what a connection lacks, and what a request has none of where no token is taken.
        if self._is_tcp:
            return attribute.startswith("request.")
        return attribute.startswith("request.auth.") and not self._document["authentication"]

    def _assuming(self, policy: Json, *, good: bool) -> Json:
        """`policy` with what is unknown as `good` for the caller as it can be, or as bad.

        CUSTOM asks Rego: it may allow, and it may deny.
        """
        action = policy["action"]
        if action == "CUSTOM":
            rules = [] if good else [self._settled(rule, holds=True) for rule in policy["rules"]]
        else:
            rules = [self._settled(rule, holds=good == (action == "ALLOW")) for rule in policy["rules"]]
        return _by_rules(policy, rules)

    def _settled(self, rule: Json, *, holds: bool) -> Json:
        """`rule` with its conditions on what is unknown taken to hold, or not to."""

        def settle(conditions: list[Json]) -> list[Json]:
            known = [each for each in conditions if self._is_known(each["attribute"])]
            return known if holds or len(known) == len(conditions) else [*known, _NO_VALUE]

        alternatives = {part: [settle(each) for each in rule[part]] for part in ("from", "to")}
        return {**alternatives, "when": settle(rule["when"])}

    @cached_property
    def _rules(self) -> list[_Rule]:
        return [
            _Rule(policy["name"], policy["action"], index, self._alone(policy, rule), self._unknown(rule))
            for policy in self._policies
            for index, rule in enumerate(policy["rules"])
        ]

    def _alone(self, policy: Json, rule: Json) -> Program:
        return self._load([_by_rules(policy, [self._settled(rule, holds=True)])])

    def _unknown(self, rule: Json) -> tuple[str, ...]:
        conditions = [each for part in ("from", "to") for some in rule[part] for each in some] + rule["when"]
        return tuple(sorted({each["attribute"] for each in conditions if not self._is_known(each["attribute"])}))

    def _may_match(self, rule: _Rule, source: str | None) -> bool:
        return self._decide(rule.program, source).policy is not None

    def _load(self, policies: list[Json]) -> Program:
        # A connection has no token, so that the engine knows what is asked of it; a request may have any.
        authentication = self._document["authentication"] if self._is_tcp else []
        document = {**self._document, "authentication": authentication, "rego": [], "policies": policies}
        return Program.load(canonical(document))

    def _decide(self, program: Program, source: str | None) -> Decision:
        request = Request(
            method=None if self._is_tcp else "GET",
            path="" if self._is_tcp else "/",
            source_principal=source,
            destination_ip=self._workload.address,
            destination_port=self._port.port,
        )
        return self._decider.decide(program, _NO_KEYS, _NO_REVOCATIONS, request, 0)


def _by_rules(policy: Json, rules: list[Json]) -> Json:
    action = "DENY" if policy["action"] == "CUSTOM" else policy["action"]
    service_ports = {"service_ports": policy["service_ports"]} if "service_ports" in policy else {}
    return {"name": policy["name"], "action": action, "rules": rules, **service_ports}


def _told(decision: Decision) -> str:
    rule = "" if decision.policy is None else f" {decision.policy}[{decision.rule}]"
    return f"{decision.reason}{rule}"
