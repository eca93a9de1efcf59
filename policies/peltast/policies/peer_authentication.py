"""Which mTLS mode holds at a port: Istio's precedence of mesh, namespace, workload and port, the narrowest last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from peltast.policies.kinds.peer_authentication import MtlsMode, PeerAuthenticationSpec
from peltast.policies.kinds.resource import Resource
from peltast.policies.kinds.selection import ROOT_NAMESPACE, applies
from peltast.policies.problems import Problem

if TYPE_CHECKING:
    from peltast.policies.snapshot import Workload

__all__ = ["DEFAULT_MODE", "conflicts", "mtls_mode"]

PeerAuthentication: TypeAlias = Resource[PeerAuthenticationSpec]

DEFAULT_MODE = MtlsMode.STRICT
"""Where no PeerAuthentication says otherwise. Istio's is PERMISSIVE."""


class _Level(IntEnum):
    MESH = 0
    NAMESPACE = 1
    WORKLOAD = 2


def _level(policy: PeerAuthentication) -> _Level:
    if policy.spec.selector.match_labels:
        return _Level.WORKLOAD
    return _Level.MESH if policy.namespace == ROOT_NAMESPACE else _Level.NAMESPACE


def mtls_mode(applying: Iterable[PeerAuthentication], port: int) -> MtlsMode:
    """The mode of an application's `port`, by the policies that apply to its workload. Never `UNSET`."""
    mode = DEFAULT_MODE
    for policy in sorted(applying, key=_level):
        for said in (policy.spec.mtls.mode, policy.spec.mode_of_port(port)):
            mode = mode if said is MtlsMode.UNSET else said
    return mode


def conflicts(policies: Sequence[PeerAuthentication], workloads: Sequence[Workload]) -> Iterator[Problem]:
    """What cannot be enforced as it is written."""
    for policy in policies:
        if _level(policy) is _Level.WORKLOAD and policy.namespace == ROOT_NAMESPACE:
            given = f"a selector is given in the namespace {ROOT_NAMESPACE}"
            allowed = "a policy there is for the whole mesh; select workloads by one in their own namespace"
            yield policy.problem(("spec", "selector"), given, allowed)
    yield from _rivals(policies, workloads)
    for policy in policies:
        yield from _unknown_ports(policy, [each for each in workloads if selects(policy, each)])


def selects(policy: PeerAuthentication, workload: Workload) -> bool:
    """Whether `policy` says what holds for `workload`."""
    return applies(policy.namespace, policy.spec.selector, workload.namespace, workload.labels)


def _rivals(policies: Sequence[PeerAuthentication], workloads: Sequence[Workload]) -> Iterator[Problem]:
    """Istio takes the oldest of several at one level. Files have no age, so a second one is a problem, told once."""
    found: dict[str, Problem] = {}
    for workload in workloads:
        first: dict[_Level, PeerAuthentication] = {}
        for policy in policies:
            if selects(policy, workload) and (other := first.setdefault(_level(policy), policy)) is not policy:
                given = f"{workload.full_name} is selected by {other.full_name}, too"
                allowed = "a workload has one of its mesh, one of its namespace, and one that names it by labels"
                found.setdefault(policy.full_name, policy.problem(("spec", "selector"), given, allowed))
    yield from found.values()


def _unknown_ports(policy: PeerAuthentication, selected: Sequence[Workload]) -> Iterator[Problem]:
    """Ports that no selected workload has; a service's `port` given in place of its `targetPort` is one."""
    known = {str(port.target_port) for workload in selected for port in workload.ports}
    for port in policy.spec.port_level_mtls if selected else ():
        if port not in known:
            allowed = f"an application's port (targetPort) is expected; known are {', '.join(sorted(known)) or 'none'}"
            yield policy.problem(("spec", "portLevelMtls", port), f"{port} is given", allowed)
