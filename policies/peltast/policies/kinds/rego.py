"""RegoPolicy: a Rego policy that CUSTOM policies ask."""

from __future__ import annotations

import json
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from peltast.policies.kinds.bundle import BundleSource
from peltast.policies.kinds.duration import DurationText, duration
from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.rego_library import library_modules
from peltast.policies.sources.documents import FieldPath

__all__ = ["DEFAULT_BODY_BYTES", "IncludedBody", "OnError", "RegoPolicySpec", "Tier"]


class Tier(StrEnum):
    """Where a Rego policy is evaluated."""

    SIDECAR = "sidecar"
    CHECK = "check"


class OnError(StrEnum):
    """What becomes of a request whose policy failed to answer."""

    DENY = "deny"
    ALLOW = "allow"


_DEFAULT_TIMEOUT = {Tier.SIDECAR: timedelta(milliseconds=5), Tier.CHECK: timedelta(milliseconds=500)}
DEFAULT_BODY_BYTES = 64 * 1024
"""What a policy reads of a body unless it says otherwise. The engine's default, too."""

_MAX_BODY_BYTES = {Tier.SIDECAR: 64 * 1024, Tier.CHECK: 512 * 1024}
_MAX_TIMEOUT = {Tier.SIDECAR: timedelta(milliseconds=50), Tier.CHECK: timedelta(seconds=1)}


class IncludedBody(Model):
    """How much of requests' bodies a policy reads, named as in Istio's extension providers."""

    max_request_bytes: Annotated[int, Field(ge=1)] = DEFAULT_BODY_BYTES
    allow_partial_message: bool = False


class RegoPolicySpec(Spec):
    """The spec of a RegoPolicy: a module written here, in files beside it or in a bundle, and the rule that answers."""

    entrypoint: str = Field(pattern=r"^data(\.[A-Za-z_][A-Za-z0-9_]*)+$")
    module: str | None = None
    files: list[str] = []
    library: list[str] = []
    data: dict[str, Any] = {}
    bundle: BundleSource | None = None
    tier: Tier | None = None
    """None for whichever admits it, the sidecar's before the check service's."""
    on_error: OnError = OnError.DENY
    timeout: DurationText | None = None
    include_request_body_in_check: IncludedBody = IncludedBody()
    proto_descriptor: str | None = None

    def timeout_in(self, tier: Tier) -> timedelta:
        """How long an evaluation in `tier` may take."""
        return _DEFAULT_TIMEOUT[tier] if self.timeout is None else duration(self.timeout)

    def beyond(self, tier: Tier) -> list[tuple[FieldPath, str, str]]:
        """What it asks for that is more than `tier` gives, as in :meth:`problems`."""
        found: list[tuple[FieldPath, str, str]] = []
        longest, most = _MAX_TIMEOUT[tier], _MAX_BODY_BYTES[tier]
        if self.timeout_in(tier) > longest:
            allowed = f"at most {longest / timedelta(milliseconds=1):.0f}ms in the {tier} tier"
            found.append((("timeout",), f"{self.timeout} is given", allowed))
        if (given := self.include_request_body_in_check.max_request_bytes) > most:
            path = ("includeRequestBodyInCheck", "maxRequestBytes")
            found.append((path, f"{given} is given", f"at most {most} in the {tier} tier"))
        return found

    def problems(self) -> list[tuple[FieldPath, str, str]]:
        """See :meth:`Spec.problems`."""
        found: list[tuple[FieldPath, str, str]] = []
        if self.module is None and self.bundle is None and not any(file.endswith(".rego") for file in self.files):
            found.append(
                (("module",), "no Rego is given", "give module, files with a .rego file among them, or bundle")
            )
        if self.bundle is not None:
            found += ((("bundle", *path), given, allowed) for path, given, allowed in self.bundle.problems())
        for index, file in enumerate(self.files):
            if not file.endswith((".rego", ".json")):
                found.append((("files", index), f"{file!r} is given", "a .rego or a .json file is expected"))
        for index, name in enumerate(self.library):
            if name not in library_modules():
                allowed = f"one of {', '.join(library_modules())} is expected"
                found.append((("library", index), f"{name!r} is given", allowed))
        try:
            json.dumps(self.data, allow_nan=False)
        except ValueError:
            found.append((("data",), "a number that is not finite is given", "data must be writable as JSON"))
        found += self.beyond(self.tier or Tier.CHECK)
        if self.proto_descriptor is not None and not self.proto_descriptor.endswith(".pb"):
            found.append((("protoDescriptor",), f"{self.proto_descriptor!r} is given", "a .pb file is expected"))
        return found
