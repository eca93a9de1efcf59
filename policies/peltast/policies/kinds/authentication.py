"""RequestAuthentication, as Istio writes it.

https://istio.io/latest/docs/reference/config/security/request_authentication/
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from pydantic import Field

from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.kinds.selection import WorkloadSelector
from peltast.policies.sources.documents import FieldPath
from peltast.policies.sources.json_text import read_json

__all__ = ["JwtRule", "RequestAuthenticationSpec"]

_BEARER_ONLY = "tokens are taken from the Authorization header only, for now"
_NO_OUTPUT = "claims are not copied to headers yet"


class JwtRule(Model):
    """How the tokens of one issuer are verified."""

    refused: ClassVar = {
        "jwksUri": "key sets are not fetched yet; give them inline as jwks",
        "jwks_uri": "key sets are not fetched yet; give them inline as jwks",
        "fromHeaders": _BEARER_ONLY,
        "fromParams": _BEARER_ONLY,
        "fromCookies": _BEARER_ONLY,
        "outputPayloadToHeader": _NO_OUTPUT,
        "outputClaimToHeaders": _NO_OUTPUT,
        "spaceDelimitedClaims": "claims are not split yet",
        "timeout": "it is for jwksUri, which is not there yet",
    }

    issuer: str = Field(min_length=1)
    audiences: list[str] = []
    jwks: str
    forward_original_token: bool = False


class RequestAuthenticationSpec(Spec):
    """The spec of a RequestAuthentication."""

    refused: ClassVar = {
        "targetRef": "gateways and waypoints are not there yet; use selector",
        "targetRefs": "gateways and waypoints are not there yet; use selector",
    }

    selector: WorkloadSelector = WorkloadSelector()
    jwt_rules: list[JwtRule] = []

    def problems(self) -> list[tuple[FieldPath, str, str]]:
        """See :meth:`Spec.problems`."""
        found: list[tuple[FieldPath, str, str]] = []
        issuers = Counter(rule.issuer for rule in self.jwt_rules)
        for index, rule in enumerate(self.jwt_rules):
            at: FieldPath = ("jwtRules", index)
            if issuers[rule.issuer] > 1:
                found.append(((*at, "issuer"), f"{rule.issuer!r} is given twice", "an issuer has one rule"))
            try:
                read_json(rule.jwks)
            except ValueError as error:
                found.append(((*at, "jwks"), f"not JSON: {error}", "a JWK Set (RFC 7517) is expected"))
        return found
