from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from peltast.audit.checkpoint import (
    BadCheckpoint,
    Checkpoint,
    Signer,
    VerifierKey,
    open_checkpoint,
    open_note,
    origin_of,
)

ORIGIN = origin_of("mesh.example")
SIGNER = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"k" * 32))
KEY = SIGNER.verifier_key
ROOT = bytes(range(32))
NOTE = SIGNER.sign(300, ROOT)

# The example of golang.org/x/mod/sumdb/note, which the C2SP signed-note comes from.
KNOWN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
KNOWN_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
KNOWN_NOTE = (
    KNOWN_TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_a_note_of_another_implementation_is_read() -> None:
    key = VerifierKey.parse(KNOWN_KEY)
    assert str(key) == KNOWN_KEY
    assert open_note(KNOWN_NOTE, key) == KNOWN_TEXT


def test_a_checkpoint_has_the_form_of_a_transparency_log() -> None:
    origin, size, root, empty, signature, end = NOTE.split("\n")
    assert (origin, size, empty, end) == ("peltast.dev/audit/mesh.example", "300", "", "")
    assert root == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
    assert signature.startswith(f"— {ORIGIN} ")


@given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_what_was_signed_is_opened(size: int, root: bytes) -> None:
    assert open_checkpoint(SIGNER.sign(size, root), KEY) == Checkpoint(ORIGIN, size, root)


def test_signatures_of_others_are_passed_over() -> None:
    text, signature = NOTE.split("\n\n")
    assert open_checkpoint(f"{text}\n\n— witness.example AAAAAA==\n{signature}", KEY).size == 300


@given(st.integers(0, len(NOTE) - 1), st.characters(codec="utf-8"))
def test_a_note_with_one_character_changed_is_refused(place: int, character: str) -> None:
    changed = NOTE[:place] + character + NOTE[place + 1 :]
    if changed == NOTE:
        return
    try:
        opened = open_checkpoint(changed, KEY)
    except BadCheckpoint:
        return
    # Base64 has bits that mean nothing, and a line may end otherwise; what was signed is the same.
    assert opened == Checkpoint(ORIGIN, 300, ROOT)


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(BadCheckpoint):
        open_checkpoint(text, KEY)
    with pytest.raises(BadCheckpoint):
        VerifierKey.parse(text)


def forged(text: str) -> str:
    """A note of any text with a good signature."""
    signature = SIGNER._key.sign(text.encode())
    return f"{text}\n— {ORIGIN} {base64.b64encode(KEY.id + signature).decode()}\n"


REFUSED = [
    ("another log\n1\n" + "A" * 43 + "=\n", "this is not a checkpoint"),
    ("another.example\n1\n" + "A" * 43 + "=\n", "it is of the log another.example"),
    (f"{ORIGIN}\n01\n" + "A" * 43 + "=\n", "this is not a checkpoint"),
    (f"{ORIGIN}\n-1\n" + "A" * 43 + "=\n", "this is not a checkpoint"),
    (f"{ORIGIN}\n{2**63}\n" + "A" * 43 + "=\n", "at most 63 bits"),
    (f"{ORIGIN}\n1\nAAAA\n", "32 bytes"),
    (f"{ORIGIN}\n1\n*\n", "not Base64"),
    (f"{ORIGIN}\n1\n", "this is not a checkpoint"),
]


@pytest.mark.parametrize(("text", "problem"), REFUSED)
def test_a_signed_text_that_is_no_checkpoint_of_this_log_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BadCheckpoint, match=problem):
        open_checkpoint(forged(text), KEY)


def test_lines_that_extend_a_checkpoint_are_passed_over() -> None:
    text = Checkpoint(ORIGIN, 3, ROOT).text + "time 2026-11-22\n"
    assert open_checkpoint(forged(text), KEY) == Checkpoint(ORIGIN, 3, ROOT)


def test_another_key_of_the_same_name_is_another_key() -> None:
    other = Signer(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"x" * 32))
    with pytest.raises(BadCheckpoint, match="no signature of it"):
        open_checkpoint(other.sign(300, ROOT), KEY)


@pytest.mark.parametrize(
    "text", ["", "a+b", "a+00000000+AAAA", str(KEY)[:-4], "x" + str(KEY), str(KEY).replace("+", " ")]
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(BadCheckpoint):
        VerifierKey.parse(text)
