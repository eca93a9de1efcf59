"""Where a RegoPolicy's bundle comes from, and by which keys it is signed. Fields are OPA's, where it has them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from peltast.policies.kinds.duration import DurationText, duration
from peltast.policies.kinds.resource import Model
from peltast.policies.kinds.uri import uri_problem
from peltast.policies.sources.bundle_signature import Verification, VerificationKey
from peltast.policies.sources.documents import FieldPath

__all__ = ["BundleSource", "Polling", "Signing"]

_DEFAULT_TIMEOUT = timedelta(seconds=10)
_MAX_TIMEOUT = timedelta(seconds=60)
_MAX_LONG_POLL = timedelta(minutes=10)

Word = Annotated[str, Field(min_length=1, max_length=256)]
Place = Annotated[str, Field(min_length=1, max_length=2048)]
Finding = tuple[FieldPath, str, str]


class Algorithm(StrEnum):
    """How a bundle is signed (RFC 7518 section 3.1)."""

    RS256 = "RS256"
    ES256 = "ES256"
    HS256 = "HS256"


class SigningKey(Model):
    """A key that verifies: a public key in PEM, or for HS256 a secret."""

    algorithm: Algorithm = Algorithm.RS256
    key: Annotated[str, Field(min_length=1, max_length=16 * 1024)]
    scope: str = ""


class Signing(Model):
    """By which keys, and for what, a bundle must be signed."""

    keys: Annotated[dict[Word, SigningKey], Field(min_length=1, max_length=100)]
    keyid: str = ""
    scope: str = ""

    @property
    def verification(self) -> Verification:
        """The same, for who verifies."""
        keys = (VerificationKey(id_, key.algorithm, key.key, key.scope) for id_, key in self.keys.items())
        return Verification(tuple(keys), self.keyid, self.scope)

    def problems(self) -> Iterator[Finding]:
        """What is wrong beyond the types of single fields, as in :meth:`Spec.problems`."""
        if self.keyid and self.keyid not in self.keys:
            yield ("keyid",), f"{self.keyid!r} is given", f"one of the keys is expected: {', '.join(self.keys)}"
        for key in self.verification.keys:
            try:
                key.load()
            except ValueError as error:
                allowed = "RSA of 2048 bits or more, P-256, or a secret of 32 bytes or more is expected"
                yield ("keys", key.id, "key"), str(error), allowed


class Polling(Model):
    """How often a bundle is asked for."""

    min_delay: DurationText = "60s"
    max_delay: DurationText = "120s"
    long_polling_timeout: DurationText | None = None

    @property
    def delays(self) -> tuple[timedelta, timedelta]:
        """The shortest and the longest time between two questions."""
        return duration(self.min_delay), duration(self.max_delay)

    @property
    def wait(self) -> timedelta:
        """How long the server may hold an answer back until there is another bundle."""
        return duration(self.long_polling_timeout) if self.long_polling_timeout is not None else timedelta()

    def problems(self) -> Iterator[Finding]:
        """What is wrong beyond the types of single fields, as in :meth:`Spec.problems`."""
        shortest, longest = self.delays
        if not timedelta(seconds=1) <= shortest <= longest:
            allowed = "at least 1s, and at most maxDelay, is expected"
            yield ("minDelay",), f"{self.min_delay} is given, and {self.max_delay} as maxDelay", allowed
        if self.wait and not timedelta(seconds=1) <= self.wait <= _MAX_LONG_POLL:
            allowed = f"1s to {_MAX_LONG_POLL.total_seconds():.0f}s is expected"
            yield ("longPollingTimeout",), f"{self.long_polling_timeout} is given", allowed


class BundleSource(Model):
    """One OPA bundle: a file or folder beside the policy, an OCI image layout there, or fetched from a URL."""

    file: Place | None = None
    oci: Place | None = None
    url: Place | None = None
    signing: Signing | None = None
    polling: Polling | None = None
    timeout: DurationText | None = None

    @property
    def fetch_timeout(self) -> timedelta:
        """How long fetching may take, once the server answers."""
        return _DEFAULT_TIMEOUT if self.timeout is None else duration(self.timeout)

    @property
    def verification(self) -> Verification | None:
        """By which keys the bundle must be signed; none where it must not."""
        return self.signing.verification if self.signing is not None else None

    @property
    def field(self) -> str:
        """The field that says where the bundle is."""
        return "file" if self.file is not None else "oci" if self.oci is not None else "url"

    def problems(self) -> Iterator[Finding]:
        """What is wrong beyond the types of single fields, as in :meth:`Spec.problems`."""
        given = [name for name in ("file", "oci", "url") if getattr(self, name) is not None]
        if len(given) != 1:
            yield (), f"{' and '.join(given) or 'no place'} is given", "one of file, oci and url is expected"
        if self.url is not None and (allowed := uri_problem(self.url)):
            yield ("url",), f"{self.url!r} is given", allowed
        for name in ("polling", "timeout"):
            if self.url is None and getattr(self, name) is not None:
                yield (name,), "it is given", "it is for url, which is not given"
        if self.fetch_timeout > _MAX_TIMEOUT:
            yield ("timeout",), f"{self.timeout} is given", f"at most {_MAX_TIMEOUT.total_seconds():.0f}s"
        for name in ("signing", "polling"):
            part = getattr(self, name)
            if part is not None:
                yield from (((name, *path), what, allowed) for path, what, allowed in part.problems())
