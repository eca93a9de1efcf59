"""What the mesh is made of: Service, WorkloadEntry, and WorkloadRegistration for a mesh on one machine."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Annotated, ClassVar

from pydantic import Field

from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.sources.documents import FieldPath

__all__ = ["TCP", "Egress", "ServicePort", "ServiceSpec", "WorkloadEntrySpec", "WorkloadRegistrationSpec"]

Port = Annotated[int, Field(ge=1, le=65535)]

Finding = tuple[FieldPath, str, str]

TCP = "tcp"
"""The protocol of ports whose connections carry no HTTP, as far as the mesh knows."""


class ServicePort(Model):
    """A port of a service: peers connect to `port`, where the sidecar listens; the application has `target_port`."""

    refused: ClassVar = {"nodePort": "it is for Kubernetes nodes"}

    name: str = ""
    port: Port
    target_port: Port
    protocol: str = Field(default="TCP", pattern="^TCP$")
    app_protocol: str = Field(default="http", pattern="^(http|http2|grpc|tcp)$")


class ServiceSpec(Spec):
    """The spec of a Kubernetes Service, as far as a mesh reads it."""

    selector: dict[str, str] = Field(min_length=1)
    ports: list[ServicePort] = Field(min_length=1)
    type: str = Field(default="ClusterIP", pattern="^ClusterIP$")

    def problems(self) -> list[Finding]:
        """See :meth:`Spec.problems`."""
        ports = Counter(port.port for port in self.ports)
        return [
            (("ports", index, "port"), f"{port.port} is given twice", "a port is given once")
            for index, port in enumerate(self.ports)
            if ports[port.port] > 1
        ]


class WorkloadEntrySpec(Spec):
    """The spec of an Istio WorkloadEntry: one instance of a workload, at its address."""

    refused: ClassVar = {
        "network": "several networks are not there yet",
        "locality": "localities are not there yet",
        "weight": "weights are not there yet",
        "ports": "ports are those of the services that select the workload",
    }

    address: str
    labels: dict[str, str] = {}
    service_account: str = Field(default="default", pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")

    def problems(self) -> list[Finding]:
        """See :meth:`Spec.problems`."""
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            return [(("address",), f"{self.address!r} is given", "an IP address is expected")]
        return []


class Egress(Model):
    """A service that a workload calls, and the port on its own address where its sidecar takes the calls."""

    service: str = Field(min_length=1)
    port: Port


class WorkloadRegistrationSpec(Spec):
    """The spec of a WorkloadRegistration: how a WorkloadEntry's application is started on this machine.

    The sidecar's listeners are given explicitly (`egress`) until traffic is captured.
    """

    workload: str = Field(min_length=1)
    command: list[str] = Field(min_length=1)
    environment: dict[str, str] = {}
    egress: list[Egress] = []

    def problems(self) -> list[Finding]:
        """See :meth:`Spec.problems`."""
        ports = Counter(egress.port for egress in self.egress)
        return [
            (("egress", index, "port"), f"{egress.port} is given twice", "each service has a port of its own")
            for index, egress in enumerate(self.egress)
            if ports[egress.port] > 1
        ]
