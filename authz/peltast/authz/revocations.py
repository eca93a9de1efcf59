"""Tokens that are revoked: which, kept how, and told to every engine in what form.

A revocation is for good. Tokens end by themselves, and one that says `issued before` spares every later token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from peltast.authz._engine import Revocations as EngineRevocations
from peltast.authz.canonical import canonical

__all__ = ["NO_REVOCATIONS", "InvalidRevocation", "Revocation", "RevocationList"]

MAX_REVOCATIONS = 100_000
MAX_BYTES = 32 * 1024 * 1024
"""Half of what sidecars take."""
MAX_TEXT = 4096
"""Longest issuer, subject and token id, in characters."""

_SCHEMA = 1


class InvalidRevocation(ValueError):
    """A revocation that names nothing, or more than one thing."""


@dataclass(frozen=True)
class Revocation:
    """Of one token, or of all tokens issued before a time: of one subject, or of the whole issuer.

    Raises:
        InvalidRevocation: it is neither.
    """

    issuer: str
    token_id: str | None = None
    subject: str | None = None
    issued_before: int | None = None
    """Seconds since 1970."""

    def __post_init__(self) -> None:
        if not self.issuer:
            raise InvalidRevocation("no issuer is given; the iss of the tokens is expected")
        if (self.token_id is None) == (self.issued_before is None) or (self.token_id and self.subject):
            raise InvalidRevocation("either a token's id, or a time (perhaps with a subject) is expected")
        if self.token_id == "" or self.subject == "":
            raise InvalidRevocation("an empty token id or subject is given; no token is named by it")
        for name, text in (("issuer", self.issuer), ("token id", self.token_id), ("subject", self.subject)):
            if text is not None and len(text) > MAX_TEXT:
                raise InvalidRevocation(f"the {name} has {len(text)} characters; {MAX_TEXT} are allowed")

    def to_json(self) -> dict[str, Any]:
        """As `authz/engine/src/token/revocations.rs` reads it."""
        given = {
            "issuer": self.issuer,
            "id": self.token_id,
            "subject": self.subject,
            "issued_before": self.issued_before,
        }
        return {name: value for name, value in given.items() if value is not None}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        """Reads what :meth:`to_json` gave."""
        return cls(given["issuer"], given.get("id"), given.get("subject"), given.get("issued_before"))

    def __str__(self) -> str:
        what = f"token {self.token_id}" if self.token_id is not None else f"tokens issued before {self.issued_before}"
        return f"{what}{f' of {self.subject}' if self.subject else ''} by {self.issuer}"


@dataclass
class RevocationList:
    """Every revocation, in the order in which they were made.

    `save` keeps the document with a new one before it takes effect; `take` puts the document in force.
    """

    save: Callable[[Revocation, bytes], None]
    take: Callable[[bytes], None]
    revocations: list[Revocation] = field(default_factory=list)

    def load(self, document: bytes) -> None:
        """Begins with what was saved.

        Raises:
            ValueError: it is not what was saved.
        """
        EngineRevocations.load(document)
        self.revocations = [Revocation.from_json(each) for each in json.loads(document)["revocations"]]

    def revoke(self, revocation: Revocation) -> None:
        """Adds one. One that is there already changes nothing.

        Raises:
            InvalidRevocation: there are too many.
            OSError: it could not be saved; then it does not take effect either.
        """
        if revocation in self.revocations:
            return
        if len(self.revocations) >= MAX_REVOCATIONS:
            raise InvalidRevocation(f"{MAX_REVOCATIONS} revocations are there; revoke by subject or by time instead")
        document = _document([*self.revocations, revocation])
        if len(document) > MAX_BYTES:
            raise InvalidRevocation(f"all revocations would take {len(document)} bytes; {MAX_BYTES} are allowed")
        self.save(revocation, document)
        self.revocations.append(revocation)
        self.take(document)


def _document(revocations: list[Revocation]) -> bytes:
    return canonical({"schema": _SCHEMA, "revocations": [each.to_json() for each in revocations]})


NO_REVOCATIONS = _document([])
"""The document where nothing is revoked."""
