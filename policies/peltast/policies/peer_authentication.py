"""Which mTLS mode holds at a port: Istio's precedence of mesh, namespace, workload and port, the narrowest last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

from peltast.policies.kinds.peer_authentication import MtlsMode, PeerAuthenticationSpec
from peltast.policies.kinds.resource import Resource
from peltast.policies.problems import Problem

if TYPE_CHECKING:
    from peltast.policies.snapshot import Workload

__all__ = ["DEFAULT_MODE", "PeerAuthentications"]

PeerAuthentication: TypeAlias = Resource[PeerAuthenticationSpec]

DEFAULT_MODE = MtlsMode.STRICT
"""Where no PeerAuthentication says otherwise. Istio's is PERMISSIVE."""


class _Level(IntEnum):
    MESH = 0
    NAMESPACE = 1
    WORKLOAD = 2


@dataclass(frozen=True)
class PeerAuthentications:
    """Every PeerAuthentication, and the namespace whose are for the whole mesh."""

    policies: Sequence[PeerAuthentication]
    root_namespace: str

    def mode(self, namespace: str, labels: Mapping[str, str], port: int) -> MtlsMode:
        """The mode of `port`, the application's, of a workload in `namespace` with `labels`. Never `UNSET`."""
        mode = DEFAULT_MODE
        for policy in sorted(self._for(namespace, labels), key=self._level):
            for said in (policy.spec.mtls.mode, policy.spec.mode_of_port(port)):
                mode = mode if said is MtlsMode.UNSET else said
        return mode

    def problems(self, workloads: Sequence[Workload]) -> Iterator[Problem]:
        """What cannot be enforced as it is written."""
        yield from self._selectors_in_vain()
        yield from self._rivals(workloads)
        yield from self._unknown_ports(workloads)

    def _for(self, namespace: str, labels: Mapping[str, str]) -> Iterator[PeerAuthentication]:
        for policy in self.policies:
            if policy.namespace in (self.root_namespace, namespace) and policy.spec.selector.selects(labels):
                yield policy

    def _level(self, policy: PeerAuthentication) -> _Level:
        if policy.spec.selector.match_labels:
            return _Level.WORKLOAD
        return _Level.MESH if policy.namespace == self.root_namespace else _Level.NAMESPACE

    def _selectors_in_vain(self) -> Iterator[Problem]:
        for policy in self.policies:
            if self._level(policy) is _Level.WORKLOAD and policy.namespace == self.root_namespace:
                given = f"a selector is given in the namespace {self.root_namespace}"
                allowed = "a policy there is for the whole mesh; select workloads by one in their own namespace"
                yield policy.problem(("spec", "selector"), given, allowed)

    def _rivals(self, workloads: Sequence[Workload]) -> Iterator[Problem]:
        """Istio takes the oldest of several at one level. Files have no age: a second one is a problem, told once."""
        found: dict[str, Problem] = {}
        for workload in workloads:
            first: dict[_Level, PeerAuthentication] = {}
            for policy in self._for(workload.namespace, workload.labels):
                if (other := first.setdefault(self._level(policy), policy)) is not policy:
                    given = f"{workload.full_name} is selected by {other.full_name}, too"
                    allowed = "a workload has one of its mesh, one of its namespace, and one that names it by labels"
                    found.setdefault(policy.full_name, policy.problem(("spec", "selector"), given, allowed))
        yield from found.values()

    def _unknown_ports(self, workloads: Sequence[Workload]) -> Iterator[Problem]:
        """Ports that no selected workload has; a service's `port` given in place of its `targetPort` is one."""
        known: dict[str, set[str]] = {}
        for workload in workloads:
            for policy in self._for(workload.namespace, workload.labels):
                known.setdefault(policy.full_name, set()).update(str(port.target_port) for port in workload.ports)
        for policy in self.policies:
            ports = known.get(policy.full_name)
            for port in policy.spec.port_level_mtls:
                if ports is not None and port not in ports:
                    listed = ", ".join(sorted(ports, key=int)) or "none"
                    allowed = f"an application's port (targetPort) is expected; known are {listed}"
                    yield policy.problem(("spec", "portLevelMtls", port), f"{port} is given", allowed)
