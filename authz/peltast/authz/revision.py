"""A revision: what a snapshot compiles to, for every workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peltast.authz._engine import KeySets
from peltast.authz.compile import compile_keys, compile_program, compile_rego, jwt_rules
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.snapshot import Snapshot, Workload

__all__ = ["Revision", "compile_revision"]


@dataclass(frozen=True)
class Revision:
    """A snapshot with the documents that it compiles to, by the full names of workloads and Rego policies."""

    snapshot: Snapshot
    programs: Mapping[str, bytes]
    keys: Mapping[str, bytes]
    rego: Mapping[str, bytes]


def compile_revision(snapshot: Snapshot) -> Revision:
    """Compiles `snapshot`. Whether its Rego is admitted is not known yet.

    Raises:
        InvalidConfiguration: a key set holds what must not verify tokens.
    """
    workloads = snapshot.workloads.items()
    keys = {name: compile_keys(snapshot, workload) for name, workload in workloads}
    problems = [problem for name, workload in workloads for problem in _key_problems(snapshot, workload, keys[name])]
    if problems:
        raise InvalidConfiguration(dict.fromkeys(problems))
    return Revision(
        snapshot=snapshot,
        programs={name: compile_program(snapshot, workload) for name, workload in workloads},
        keys=keys,
        rego={name: compile_rego(source) for name, source in snapshot.rego.items()},
    )


def _key_problems(snapshot: Snapshot, workload: Workload, keys: bytes) -> list[Problem]:
    try:
        KeySets.load(keys)
    except ValueError as error:
        message = str(error)
        for resource, index, _ in jwt_rules(snapshot, workload):
            if f'"{resource.full_name}[{index}]"' in message:
                allowed = "RSA keys of 2048 bits and more, or P-256 keys, each with an id of its own, are expected"
                return [resource.problem(("spec", "jwtRules", index, "jwks"), message, allowed)]
        raise
    return []
