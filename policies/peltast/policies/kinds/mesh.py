"""MeshConfig: settings of the whole mesh, named as in Istio's MeshConfig.

https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/
"""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.sources.documents import FieldPath

__all__ = ["MeshConfigSpec", "Normalization"]

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")


class Normalization(StrEnum):
    """How paths are normalized before policies see them; each mode does what the one before it does, and more."""

    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"

    def includes(self, other: Normalization) -> bool:
        """Whether this mode does what `other` does."""
        order = list(Normalization)
        return order.index(self) >= order.index(other)


class PathNormalization(Model):
    """How paths are normalized."""

    normalization: Normalization = Normalization.MERGE_SLASHES


class GatewayTopology(Model):
    """What stands before the mesh."""

    refused: ClassVar = {
        "forwardClientCertDetails": "sidecars always replace x-forwarded-client-cert by what the peer proved",
        "proxyProtocol": "the PROXY protocol is not taken yet",
    }

    num_trusted_proxies: int = Field(default=0, ge=0, le=100)


class DefaultConfig(Model):
    """Settings of every proxy."""

    gateway_topology: GatewayTopology = GatewayTopology()


class MeshConfigSpec(Spec):
    """The spec of a MeshConfig. A mesh has at most one; without it, all defaults hold."""

    refused: ClassVar = {"trustDomain": "it is the flag --trust-domain of the mesh"}

    root_namespace: str = Field(default="istio-system", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    trust_domain_aliases: list[str] = Field(default=[], max_length=100)
    path_normalization: PathNormalization = PathNormalization()
    default_config: DefaultConfig = DefaultConfig()

    @property
    def normalization(self) -> Normalization:
        """How paths are normalized."""
        return self.path_normalization.normalization

    @property
    def trusted_proxies(self) -> int:
        """How many proxies before a peer are trusted to append to ``x-forwarded-for``."""
        return self.default_config.gateway_topology.num_trusted_proxies

    def problems(self) -> list[tuple[FieldPath, str, str]]:
        """See :meth:`Spec.problems`."""
        given = Counter(self.trust_domain_aliases)
        return [
            (("trustDomainAliases", index), f"{alias!r} is given", expected)
            for index, alias in enumerate(self.trust_domain_aliases)
            for found, expected in (
                (not _TRUST_DOMAIN.fullmatch(alias), "a trust domain is expected: a-z, 0-9, dots, dashes, underscores"),
                (given[alias] > 1, "an alias is given once"),
            )
            if found
        ]
