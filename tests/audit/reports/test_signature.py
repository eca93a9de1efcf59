from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from peltast.audit.checkpoint import BadCheckpoint, VerifierKey
from peltast.audit.reports.report import Checkpoint, Report
from peltast.audit.reports.signature import BadSignature, check, sign

from .conftest import SPAN

NAME = "peltast.dev/audit/cluster.local"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CONTENT = b"source,requests\r\n"
ROOT = bytes([7]) * 32
REPORT = Report("access", "Access", SPAN, (), checkpoint=Checkpoint(4096, ROOT, datetime(2026, 9, 21, tzinfo=UTC)))
NOTE = sign(KEY, NAME, REPORT, CONTENT)
PUBLIC = VerifierKey(NAME, KEY.public_key().public_bytes_raw())


def test_a_signature_says_what_was_signed() -> None:
    assert check(PUBLIC, CONTENT, NOTE) == {
        "report": "access",
        "since": "2026-09-21T12:00:00.000000Z",
        "until": "2026-09-21T13:00:00.000000Z",
        "checkpoint": f"4096 {base64.b64encode(ROOT).decode()}",
    }
    without = sign(KEY, NAME, replace(REPORT, checkpoint=None), CONTENT)
    assert check(PUBLIC, CONTENT, without)["checkpoint"] == "none"


def test_it_is_a_signed_note_of_c2sp() -> None:
    """Read as https://c2sp.org/signed-note has it, without our code."""
    text, _, signatures = NOTE.decode().rpartition("\n\n")
    name, encoded = signatures.removeprefix("— ").rstrip("\n").split(" ")
    decoded = base64.b64decode(encoded)
    public = KEY.public_key()
    assert decoded[:4] == hashlib.sha256(name.encode() + b"\n\x01" + public.public_bytes_raw()).digest()[:4]
    public.verify(decoded[4:], f"{text}\n".encode())
    assert text.splitlines()[:2] == ["peltast.dev/audit-report/v1", f"sha256 {hashlib.sha256(CONTENT).hexdigest()}"]


def test_the_same_report_has_the_same_signature() -> None:
    assert sign(KEY, NAME, REPORT, CONTENT) == NOTE


@pytest.mark.parametrize(
    ("content", "note", "says"),
    [
        pytest.param(CONTENT + b" ", NOTE, "not the one that was signed", id="another file"),
        pytest.param(CONTENT, NOTE.replace(b"report access", b"report denials"), "was altered", id="altered"),
        pytest.param(
            CONTENT, sign(Ed25519PrivateKey.generate(), NAME, REPORT, CONTENT), "another key", id="another key"
        ),
        pytest.param(CONTENT, sign(KEY, "other", REPORT, CONTENT), "another key", id="another name"),
        pytest.param(CONTENT, NOTE + NOTE, "no note", id="twice"),
        pytest.param(CONTENT, b"", "no note", id="empty"),
        pytest.param(CONTENT, b"\xff", "UTF-8", id="bytes"),
        pytest.param(CONTENT, NOTE + b" " * 4096, "4096 bytes", id="long"),
        pytest.param(CONTENT, NOTE.rsplit(b" ", 1)[0] + b" A\n", "base64", id="no base64"),
        pytest.param(CONTENT, NOTE.rsplit(b" ", 1)[0] + b" AAAA\n", "another key", id="short"),
    ],
)
def test_what_does_not_fit_is_refused(content: bytes, note: bytes, says: str) -> None:
    with pytest.raises(BadSignature, match=says):
        check(PUBLIC, content, note)


@given(st.integers(0, len(NOTE) - 1), st.binary(min_size=1, max_size=1))
def test_no_byte_of_a_note_can_be_changed(at: int, byte: bytes) -> None:
    changed = NOTE[:at] + byte + NOTE[at + 1 :]
    if changed != NOTE:
        with pytest.raises(BadSignature):
            check(PUBLIC, CONTENT, changed)


# Keys -----------------------------------------------------------------------------------------------------------------


def test_a_key_reads_back() -> None:
    assert VerifierKey.parse(f"{PUBLIC}\n") == PUBLIC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        str(PUBLIC)[:-4],
        str(PUBLIC).replace("cluster", "cloister"),
        str(PUBLIC).replace("+AQ", "+Ag"),
        "a+0+b+c",
    ],
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(BadCheckpoint):
        VerifierKey.parse(text)
