"""Where a mesh on one machine keeps its things and listens."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peltast.identity.files import make_private_folder

__all__ = [
    "DEFAULT_BASE_PORT",
    "DEFAULT_CHECK_WORKERS",
    "DEFAULT_CONCURRENCY",
    "DEFAULT_SPOOL_BYTES",
    "DEFAULT_TRUST_DOMAIN",
    "JOIN_TOKEN_VARIABLE",
    "REDIS_VARIABLE",
    "ControlSettings",
    "Ports",
    "sockets_folder",
    "take_join_token",
]

DEFAULT_TRUST_DOMAIN = "cluster.local"
DEFAULT_BASE_PORT = 15010
DEFAULT_CONCURRENCY = 2
DEFAULT_CHECK_WORKERS = 2
DEFAULT_SPOOL_BYTES = 256 * 1024 * 1024

JOIN_TOKEN_VARIABLE = "PELTAST_JOIN_TOKEN"  # noqa: S105 - a name
REDIS_VARIABLE = "PELTAST_REDIS"

LOOPBACK = "127.0.0.1"

_MAX_SOCKET_PATH = 107
_LONGEST_SOCKET_NAME = len("/agents/0123456789abcdef/agent.sock")


@dataclass(frozen=True)
class Ports:
    """The control plane's ports, one after the other; the third is where istiod has its own."""

    base: int

    @property
    def all(self) -> tuple[int, ...]:
        """Every one of them."""
        return self.join, self.ext_authz, self.mtls, self.check, self.collector, self.metrics

    @property
    def join(self) -> int:
        """Server TLS: the first SVID, for a join token."""
        return self.base

    @property
    def ext_authz(self) -> int:
        """Mutual TLS: ext_authz over gRPC."""
        return self.base + 1

    @property
    def mtls(self) -> int:
        """Mutual TLS: ADS, SVIDs."""
        return self.base + 2

    @property
    def check(self) -> int:
        """Mutual TLS: the sidecars' callout, ext_authz over HTTP."""
        return self.base + 3

    @property
    def collector(self) -> int:
        """Mutual TLS: audit records."""
        return self.base + 4

    @property
    def metrics(self) -> int:
        """HTTP in plain, for Prometheus."""
        return self.base + 5


@dataclass(frozen=True)
class ControlSettings:
    """What the control plane and the collector are told when they are started."""

    state: Path
    trust_domain: str
    base_port: int

    @property
    def ports(self) -> Ports:
        """The ports."""
        return Ports(self.base_port)

    @property
    def authority(self) -> Path:
        """The certificate authority's folder."""
        return self.state / "ca"

    @property
    def audit_keys(self) -> Path:
        """The folder of the collector's own keys."""
        return self.state / "collector" / "audit"

    @property
    def trust_bundle(self) -> Path:
        """The root certificate, in PEM: what every part of the mesh trusts."""
        return self.authority / "root.pem"

    @property
    def operator_socket(self) -> Path:
        """The operators' own socket."""
        return operator_socket(self.state)

    def address(self, port: int) -> str:
        """``host:port`` of one of the ports."""
        return f"{LOOPBACK}:{port}"

    def control_principal(self, name: str) -> str:
        """The SPIFFE ID of a part of the control plane."""
        return f"spiffe://{self.trust_domain}/peltast/{name}"


def sidecar_state(state: Path, namespace: str, name: str) -> Path:
    """The folder of the sidecar of workload `namespace/name` in the mesh with this state."""
    return state / "sidecars" / namespace / name


def operator_socket(state: Path) -> Path:
    """The operators' own socket of the mesh with this state."""
    return sockets_folder(state) / "operator.sock"


def sockets_folder(state: Path) -> Path:
    """The folder for Unix sockets of the mesh with this state: in it, or (their paths must be short) in /tmp."""
    folder = state.absolute() / "run"
    if len(str(folder)) + _LONGEST_SOCKET_NAME > _MAX_SOCKET_PATH:
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / f"peltast-{os.geteuid()}-{digest}"
    return make_private_folder(folder)


def take_join_token() -> str:
    """The join token, out of the environment at once: children must not inherit it."""
    return os.environ.pop(JOIN_TOKEN_VARIABLE, "")
