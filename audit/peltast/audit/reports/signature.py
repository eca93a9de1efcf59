"""Signatures of reports, in files of their own: C2SP signed notes (https://c2sp.org/signed-note).

They are by the key that signs checkpoints, under its name; a note's first line tells the one from the other. A note's
text names the file by its SHA-256, the report, its range, and the checkpoint that it rests on, so that forms which have
no place for these (CSV) say it too:

    peltast.dev/audit-report/v1
    sha256 9f86d0…
    report access
    since 2026-09-21T00:00:00.000000Z
    until 2026-09-22T00:00:00.000000Z
    checkpoint 4096 J4RBSyjZU3YuXJ2i1mkjELbZVnTdJK5SXOyoMPPpd+U=

    — peltast.dev/audit/cluster.local 8tXtmXJ…
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from peltast.audit.checkpoint import VerifierKey
from peltast.audit.reports.report import Report, time_text

__all__ = ["MAX_NOTE", "BadSignature", "check", "sign"]

MAX_NOTE = 4096

_VERSION = "peltast.dev/audit-report/v1"
_NOTE = re.compile(
    rf"(?P<text>{_VERSION}\nsha256 (?P<hash>[0-9a-f]{{64}})\n(?P<said>(?:[a-z]+ [^\n]+\n)+))"
    r"\n— (?P<name>[^\s+]+) (?P<signature>[A-Za-z0-9+/]+=*)\n"
)


class BadSignature(ValueError):
    """A file and its signature do not fit."""


def sign(key: Ed25519PrivateKey, name: str, report: Report, content: bytes) -> bytes:
    """The note by which `key`, of that name, signs `content`, which is `report` in some form."""
    text = _text(report, content)
    key_id = VerifierKey(name, key.public_key().public_bytes_raw()).id
    signature = base64.b64encode(key_id + key.sign(text.encode())).decode()
    return f"{text}\n— {name} {signature}\n".encode()


def check(key: VerifierKey, content: bytes, note: bytes) -> dict[str, str]:
    """What `note`, signed by `key`, says of `content`: its report, since, until and checkpoint.

    Raises:
        BadSignature: see there.
    """
    found = _NOTE.fullmatch(_text_of(note))
    if found is None:
        raise BadSignature("the signature is no note of a report")
    signature = _decoded(found["signature"])
    if found["name"] != key.name or signature[:4] != key.id:
        raise BadSignature(f"the signature is by another key than {key.name}+{key.id.hex()}")
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(signature[4:], found["text"].encode())
    except InvalidSignature:
        raise BadSignature("the signature is not the key's: the note was altered") from None
    if hashlib.sha256(content).hexdigest() != found["hash"]:
        raise BadSignature("the file is not the one that was signed")
    return dict(line.split(" ", 1) for line in found["said"].splitlines())


def _text(report: Report, content: bytes) -> str:
    checkpoint = report.checkpoint
    root = f"{checkpoint.size} {base64.b64encode(checkpoint.root).decode()}" if checkpoint else "none"
    lines = (
        _VERSION,
        f"sha256 {hashlib.sha256(content).hexdigest()}",
        f"report {report.name}",
        f"since {time_text(report.span.since)}",
        f"until {time_text(report.span.until)}",
        f"checkpoint {root}",
    )
    return "".join(f"{line}\n" for line in lines)


def _text_of(note: bytes) -> str:
    if len(note) > MAX_NOTE:
        raise BadSignature(f"the signature has over {MAX_NOTE} bytes")
    try:
        return note.decode()
    except UnicodeDecodeError:
        raise BadSignature("the signature is not UTF-8") from None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadSignature("it is not base64") from None
