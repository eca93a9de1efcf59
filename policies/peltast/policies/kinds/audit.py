"""AuditPolicy: what records say of requests, how surely they are kept, and what is told of decisions beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum

from pydantic import Field

from peltast.policies.kinds.duration import DurationText, duration
from peltast.policies.kinds.resource import Model, Spec
from peltast.policies.kinds.selection import WorkloadSelector
from peltast.policies.sources.documents import FieldPath

__all__ = ["AuditPolicySpec", "Detail", "Durability", "OnSpoolFull", "Record", "Treatment", "claim_path"]

DEFAULT_SYNC_INTERVAL = "1s"

Finding = tuple[FieldPath, str, str]

_MAX_CHOSEN = 32
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_CLAIM = re.compile(r"(?!.{257})([^\[\]\x00-\x1f\x7f]+|claims(\[[^\[\]\x00-\x1f\x7f]+\])+)")
_SECRETS = ("authorization", "proxy-authorization", "cookie")
"""Headers that let whoever reads them act as the caller."""


class Treatment(StrEnum):
    """How a value is recorded."""

    KEEP = "keep"
    REDACT = "redact"
    HASH = "hash"


class Detail(StrEnum):
    """How much is recorded of requests that are allowed."""

    FULL = "full"
    SUMMARY = "summary"


class Chosen(Model):
    """A header, or a claim, that is recorded."""

    name: str
    as_: Treatment = Field(alias="as")


class Record(Model):
    """What records say. What is none is left to less specific policies, and in the end to the defaults."""

    query: Treatment | None = None
    headers: list[Chosen] | None = None
    claims: list[Chosen] | None = None
    token_subject: Treatment | None = None
    source_address: Treatment | None = None
    allowed: Detail | None = None

    def over(self, other: Record) -> Record:
        """This one, with what it leaves open as `other` says."""
        return other.model_copy(update={name: getattr(self, name) for name in self.given})

    @property
    def given(self) -> list[str]:
        """The names of what it does not leave open."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


class Denials(Model):
    """What whoever is denied is told."""

    policy_name: bool = False


class OnSpoolFull(StrEnum):
    """What becomes of a request that would be allowed while its record has no room."""

    DENY = "deny"
    DROP = "drop"


class Durability(StrEnum):
    """What records survive before they are in the store."""

    PROCESS = "process"
    """The end of any process."""
    MACHINE = "machine"
    """The end of the machine too, but for the last `syncInterval`."""


class AuditPolicySpec(Spec):
    """The spec of an AuditPolicy."""

    selector: WorkloadSelector = WorkloadSelector()
    denials: Denials = Field(default=Denials())
    record: Record = Field(default=Record())
    on_spool_full: OnSpoolFull | None = None
    durability: Durability | None = None
    sync_interval: DurationText | None = None

    @property
    def synced_every(self) -> timedelta | None:
        """How often records are brought to the disk; none where this does not say that they are."""
        if self.durability is not Durability.MACHINE:
            return None
        return duration(self.sync_interval or DEFAULT_SYNC_INTERVAL)

    def problems(self) -> list[Finding]:
        """See :meth:`Spec.problems`."""
        headers, claims = self.record.headers or [], self.record.claims or []
        return [
            *_chosen_problems(("record", "headers"), [header.name.lower() for header in headers]),
            *_header_problems(headers),
            *_chosen_problems(("record", "claims"), [str(claim_path(claim.name)) for claim in claims]),
            *_claim_problems(claims),
            *self._sync_problems(),
        ]

    def _sync_problems(self) -> Iterator[Finding]:
        if self.sync_interval is not None and self.durability is not Durability.MACHINE:
            allowed = "durability: machine is expected beside it, for nothing is synced otherwise"
            yield (("syncInterval",), f"{self.sync_interval!r} is given", allowed)


def claim_path(name: str) -> list[str]:
    """Where the claim `name` is in a token: ``NAME``, or ``claims[NAME][NAME]`` in objects, as rules have it."""
    nested = name.startswith("claims[") and name.endswith("]")
    return name.removeprefix("claims[")[:-1].split("][") if nested else [name]


def _chosen_problems(at: FieldPath, names: list[str]) -> Iterator[Finding]:
    if len(names) > _MAX_CHOSEN:
        yield (at, f"{len(names)} are given", f"at most {_MAX_CHOSEN} are allowed")
    times = Counter(names)
    for index, name in enumerate(names):
        if times[name] > 1 and names.index(name) < index:
            yield ((*at, index, "name"), f"{name!r} is given twice", "each is recorded in one way")


def _header_problems(headers: list[Chosen]) -> Iterator[Finding]:
    for index, header in enumerate(headers):
        at: FieldPath = ("record", "headers", index)
        if not _HEADER.fullmatch(header.name):
            yield (
                (*at, "name"),
                f"{header.name!r} is given",
                "the name of a header is expected (RFC 9110 section 5.1)",
            )
        if header.name.lower() in _SECRETS and header.as_ is Treatment.KEEP:
            allowed = "redact or hash is expected: whoever reads it in a record could act as the caller"
            yield ((*at, "as"), f"keep is given for {header.name}", allowed)


def _claim_problems(claims: list[Chosen]) -> Iterator[Finding]:
    for index, claim in enumerate(claims):
        if not _CLAIM.fullmatch(claim.name):
            allowed = "NAME or claims[NAME][NAME] is expected, of at most 256 characters"
            yield (("record", "claims", index, "name"), f"{claim.name!r} is given", allowed)
