"""PeerAuthentication, as Istio writes it.

https://istio.io/latest/docs/reference/config/security/peer_authentication/
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.kinds.selection import WorkloadSelector

__all__ = ["MtlsMode", "PeerAuthenticationSpec"]


class MtlsMode(StrEnum):
    """Whether a workload takes connections without mutual TLS."""

    UNSET = "UNSET"
    STRICT = "STRICT"


class Mtls(Model):
    """The mTLS settings of a workload."""

    mode: MtlsMode = MtlsMode.UNSET


class PeerAuthenticationSpec(Spec):
    """The spec of a PeerAuthentication. Peltast is STRICT everywhere; PERMISSIVE and DISABLE are not there yet."""

    refused: ClassVar = {"portLevelMtls": "only STRICT is there yet, and it holds on every port"}

    selector: WorkloadSelector = WorkloadSelector()
    mtls: Mtls = Mtls()
