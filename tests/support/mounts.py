"""The engine in Python, as the tests ask it."""

from __future__ import annotations

import time

from support.generated import NAMESPACE, PORTS, PolicySet
from support.reference import Asked, Outcome

from peltast.authz._engine import Decider, Decision, KeySets, Program, Request, Revocations
from peltast.authz.revision import Revision
from peltast.authz.revocations import NO_REVOCATIONS


class PythonMount:
    """The engine with what a policy set compiles to."""

    def __init__(self, policies: PolicySet) -> None:
        self.revision: Revision = policies.compile()
        workload = f"{NAMESPACE}/catalog"
        self.program = Program.load(self.revision.programs[workload])
        self.keys = KeySets.load(self.revision.keys[workload])
        self._decider = Decider()
        self._revocations = Revocations.load(NO_REVOCATIONS)

    def decide(self, asked: Asked) -> Outcome:
        now_ms = time.time_ns() // 1_000_000
        asked_of_engine = engine_request(asked)
        return outcome(self._decider.decide(self.program, self.keys, self._revocations, asked_of_engine, now_ms))


def engine_request(asked: Asked) -> Request:
    token = [("authorization", f"Bearer {asked.token.text}")] if asked.token else []
    return Request(
        method=asked.method,
        host=asked.host,
        path=asked.path,
        scheme="https",
        protocol="HTTP/1.1",
        headers=[*asked.headers, *token],
        source_principal=asked.principal,
        source_ip=asked.source_ip,
        source_port=40000,
        destination_ip=asked.destination_ip,
        destination_port=PORTS[asked.port],
        sni=asked.sni,
    )


def outcome(decision: Decision) -> Outcome:
    return Outcome(decision.allowed, decision.reason, decision.policy, decision.rule)
