"""A revision: what a snapshot compiles to, for every workload."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from peltast.authz._engine import KeySets
from peltast.authz.canonical import Json, canonical
from peltast.authz.compile import (
    KeySource,
    compile_keys,
    compile_program,
    key_set_name,
    key_source,
)
from peltast.authz.revocations import NO_REVOCATIONS
from peltast.policies.kinds.request_authentication import RequestAuthenticationSpec
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.snapshot import Snapshot

__all__ = ["Revision", "compile_revision"]


@dataclass(frozen=True)
class Revision:
    """A snapshot with the documents that it compiles to, by the full names of workloads.

    Revocations are no part of a snapshot: operators make them, and they outlive every configuration.
    """

    snapshot: Snapshot
    programs: Mapping[str, bytes]
    keys: Mapping[str, bytes]
    revocations: bytes = NO_REVOCATIONS

    @property
    def key_sources(self) -> frozenset[KeySource]:
        """Where keys are to be fetched from."""
        resources = self.snapshot.of_kind(RequestAuthenticationSpec)
        sources = (key_source(rule) for resource in resources for rule in resource.spec.jwt_rules)
        return frozenset(source for source in sources if source is not None)

    def with_keys(self, fetched: Mapping[KeySource, Json]) -> Revision:
        """The same revision with these keys for the rules that have theirs fetched."""
        keys = {
            name: compile_keys(self.snapshot, workload, fetched) for name, workload in self.snapshot.workloads.items()
        }
        return replace(self, keys=keys)


def compile_revision(snapshot: Snapshot) -> Revision:
    """Compiles `snapshot`. Whether its Rego is admitted is not known yet, and keys that are to be fetched are missing.

    Raises:
        InvalidConfiguration: a key set holds what must not verify tokens.
    """
    workloads = snapshot.workloads.items()
    if problems := list(_key_problems(snapshot)):
        raise InvalidConfiguration(problems)
    return Revision(
        snapshot=snapshot,
        programs={name: compile_program(snapshot, workload) for name, workload in workloads},
        keys={name: compile_keys(snapshot, workload, {}) for name, workload in workloads},
    )


def _key_problems(snapshot: Snapshot) -> Iterator[Problem]:
    """What is wrong with key sets, each loaded by itself: also those that select no workload yet."""
    for resource in snapshot.of_kind(RequestAuthenticationSpec):
        for index, rule in enumerate(resource.spec.jwt_rules):
            if rule.jwks is None:
                continue
            try:
                KeySets.load(canonical({key_set_name(resource, index): json.loads(rule.jwks)}))
            except ValueError as error:
                allowed = "RSA keys of 2048 to 8192 bits, P-256, P-384 or Ed25519 keys are expected, each id once"
                yield resource.problem(("spec", "jwtRules", index, "jwks"), str(error), allowed)
