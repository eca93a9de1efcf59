"""PeerAuthentication, as Istio writes it.

https://istio.io/latest/docs/reference/config/security/peer_authentication/
"""

from __future__ import annotations

import re
from enum import StrEnum

from pydantic import Field

from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.kinds.selection import WorkloadSelector
from peltast.policies.sources.documents import FieldPath

__all__ = ["Mtls", "MtlsMode", "PeerAuthenticationSpec"]

_NUMBER = re.compile(r"[1-9][0-9]{0,4}")


class MtlsMode(StrEnum):
    """What a port takes: mutual TLS (`STRICT`), plaintext (`DISABLE`), or either (`PERMISSIVE`)."""

    UNSET = "UNSET"
    STRICT = "STRICT"
    PERMISSIVE = "PERMISSIVE"
    DISABLE = "DISABLE"


class Mtls(Model):
    """The mTLS settings of a workload, or of one of its ports."""

    mode: MtlsMode = MtlsMode.UNSET


class PeerAuthenticationSpec(Spec):
    """The spec of a PeerAuthentication."""

    selector: WorkloadSelector = WorkloadSelector()
    mtls: Mtls = Mtls()
    port_level_mtls: dict[str, Mtls] = Field(default={}, min_length=1)

    def mode_of_port(self, port: int) -> MtlsMode:
        """What is said of `port`, the application's, itself; `UNSET` where nothing is."""
        return self.port_level_mtls.get(str(port), Mtls()).mode

    def problems(self) -> list[tuple[FieldPath, str, str]]:
        """See :meth:`Spec.problems`."""
        found: list[tuple[FieldPath, str, str]] = [
            (("portLevelMtls", port), f"{port!r} is given", "a port from 1 to 65535 is expected")
            for port in self.port_level_mtls
            if not (_NUMBER.fullmatch(port) and int(port) < 65536)
        ]
        if self.port_level_mtls and not self.selector.match_labels:
            found.append((("portLevelMtls",), "given without a selector", "ports are those of selected workloads"))
        return found
