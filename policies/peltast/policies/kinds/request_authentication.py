"""RequestAuthentication, as Istio writes it, with two fields of our own: `require` and `allowMissingExpiry`.

https://istio.io/latest/docs/reference/config/security/request_authentication/
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, ClassVar

from pydantic import Field

from peltast.policies.kinds.duration import DurationText, duration
from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.kinds.selection import WorkloadSelector
from peltast.policies.kinds.uri import uri_problem
from peltast.policies.sources.documents import FieldPath
from peltast.policies.sources.json_text import read_json

__all__ = ["ClaimToHeader", "JwtHeader", "JwtRule", "RequestAuthenticationSpec"]

_DEFAULT_TIMEOUT = timedelta(seconds=5)
_MAX_TIMEOUT = timedelta(seconds=60)
_FRAMING = {
    *("connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer"),
    *("transfer-encoding", "upgrade"),
}
"""Headers that belong to the connection, and not to who sends a request."""

Token = Annotated[str, Field(pattern=r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}$")]
"""What headers and cookies may be called (RFC 9110 section 5.6.2, RFC 6265 section 4.1.1)."""

OutputHeader = Annotated[str, Field(pattern=r"^[-_A-Za-z0-9]{1,256}$")]
"""As Istio has it."""

Name = Annotated[str, Field(min_length=1, max_length=256)]
Finding = tuple[FieldPath, str, str]


class JwtHeader(Model):
    """A header that tokens are taken from."""

    name: Token
    prefix: Annotated[str, Field(pattern=r"^[!-+\--~ ]{0,256}$")] = ""
    """What stands before the token: visible characters but commas, which stand between values."""


class ClaimToHeader(Model):
    """A header that tells the application a claim."""

    header: OutputHeader
    claim: Name


class JwtRule(Model):
    """How the tokens of one issuer are found and verified, and what becomes of them."""

    refused: ClassVar = {"jwks_uri": "it is written jwksUri"}

    issuer: Name
    audiences: list[str] = []
    jwks: str | None = None
    jwks_uri: Annotated[str, Field(max_length=2048)] | None = None
    timeout: DurationText | None = None
    from_headers: list[JwtHeader] = []
    from_params: list[Name] = []
    from_cookies: list[Token] = []
    forward_original_token: bool = False
    output_payload_to_header: OutputHeader | None = None
    output_claim_to_headers: list[ClaimToHeader] = []
    space_delimited_claims: list[Name] = []
    allow_missing_expiry: bool = False

    @property
    def fetch_timeout(self) -> timedelta:
        """How long fetching the keys may take."""
        return _DEFAULT_TIMEOUT if self.timeout is None else duration(self.timeout)

    def problems(self) -> Iterator[Finding]:
        """What is wrong beyond the types of single fields, as in :meth:`Spec.problems`."""
        yield from self._key_problems()
        for path, header in self._headers():
            if header.lower() in _FRAMING:
                yield path, f"{header!r} is given", "a header that does not belong to the connection is expected"
        outputs = Counter(header.lower() for path, header in self._headers() if path[0] != "fromHeaders")
        for header, count in outputs.items():
            if count > 1:
                yield ("outputClaimToHeaders",), f"{header!r} is given twice", "a header has one source"

    def _key_problems(self) -> Iterator[Finding]:
        if (self.jwks is None) == (self.jwks_uri is None):
            given = "neither jwks nor jwksUri is given" if self.jwks is None else "jwks and jwksUri are given"
            yield ("jwks",), given, "one of them is expected; keys are not looked for by the issuer's name"
        if self.jwks is not None:
            try:
                read_json(self.jwks)
            except ValueError as error:
                yield ("jwks",), f"not JSON: {error}", "a JWK Set (RFC 7517) is expected"
        if self.jwks_uri is not None and (problem := uri_problem(self.jwks_uri)):
            yield ("jwksUri",), f"{self.jwks_uri!r} is given", problem
        if self.timeout is not None and self.jwks_uri is None:
            yield ("timeout",), f"{self.timeout} is given", "it is for jwksUri, which is not given"
        if self.fetch_timeout > _MAX_TIMEOUT:
            yield ("timeout",), f"{self.timeout} is given", f"at most {_MAX_TIMEOUT.total_seconds():.0f}s"

    def _headers(self) -> Iterator[tuple[FieldPath, str]]:
        yield from ((("fromHeaders", index, "name"), one.name) for index, one in enumerate(self.from_headers))
        if self.output_payload_to_header is not None:
            yield ("outputPayloadToHeader",), self.output_payload_to_header
        outputs = enumerate(self.output_claim_to_headers)
        yield from ((("outputClaimToHeaders", index, "header"), one.header) for index, one in outputs)


class RequestAuthenticationSpec(Spec):
    """The spec of a RequestAuthentication."""

    refused: ClassVar = {
        "targetRef": "gateways and waypoints are not there yet; use selector",
        "targetRefs": "gateways and waypoints are not there yet; use selector",
    }

    selector: WorkloadSelector = WorkloadSelector()
    jwt_rules: list[JwtRule] = []
    require: bool = False
    """Whether every request needs a token that one of these rules takes. Our own."""

    def problems(self) -> list[Finding]:
        """See :meth:`Spec.problems`."""
        found: list[Finding] = []
        if self.require and not self.jwt_rules:
            found.append((("require",), "true is given", "jwtRules are needed: no token could be valid"))
        issuers = Counter(rule.issuer for rule in self.jwt_rules)
        for index, rule in enumerate(self.jwt_rules):
            at: FieldPath = ("jwtRules", index)
            if issuers[rule.issuer] > 1:
                found.append(((*at, "issuer"), f"{rule.issuer!r} is given twice", "an issuer has one rule"))
            found += [((*at, *path), given, allowed) for path, given, allowed in rule.problems()]
        return found
