"""From the bytes of a record to its row: what is left out, what a hash stands for, and what is of a later schema."""

from __future__ import annotations

from typing import Any

import pytest

from peltast.audit.columns import COLUMNS, row
from peltast.authz._engine import first_link, next_link, verify_frames

PRESENT, REDACTED, HASHED, LATER = 1, 2, 3, 4
METHOD, PATH, STATUS, QUERY, OF_LATER = 20, 22, 31, 70, 250


def field(tag: int, state: int, value: bytes = b"") -> bytes:
    return bytes([tag, state]) + len(value).to_bytes(4, "little") + value


def frame(*fields: bytes, schema: int = 1) -> bytes:
    """A spool of one decision, as docs/audit-schema.md has it."""
    head = schema.to_bytes(2, "little") + bytes([1, 2]) + (1).to_bytes(8, "little") + (1000).to_bytes(8, "little")
    body = head + b"".join(fields)
    return len(body).to_bytes(4, "little") + body + next_link(first_link(), body)


def columns(*fields: bytes) -> dict[str, Any]:
    [record], _, _ = verify_frames(0, first_link(), frame(*fields))
    return dict(zip(COLUMNS, row(b"s", 7, "spiffe://td/ns/a/sa/b", record), strict=True))


@pytest.mark.parametrize(
    ("fields", "said", "redacted", "hashed"),
    [
        ([field(PATH, PRESENT, b"/a")], {"path": "/a"}, None, None),
        ([field(PATH, PRESENT, b"/a"), field(QUERY, REDACTED)], {"path": "/a"}, ["query"], None),
        ([field(QUERY, HASHED, b"00ff")], {"query": "00ff"}, None, ["query"]),
        ([field(QUERY, LATER, b"x"), field(METHOD, PRESENT, b"GET")], {"method": "GET"}, None, None),
        ([field(OF_LATER, PRESENT, b"x"), field(METHOD, PRESENT, b"GET")], {"method": "GET"}, None, None),
        ([field(METHOD, HASHED, b"0f"), field(PATH, REDACTED), field(QUERY, REDACTED)],
         {"method": "0f"}, ["path", "query"], ["method"]),
    ],
)  # fmt: skip
def test_a_field_is_in_its_column_as_its_state_says(
    fields: list[bytes], said: dict[str, str], redacted: list[str] | None, hashed: list[str] | None
) -> None:
    made = columns(*fields)
    names = ("method", "path", "query", "status")
    assert {name: made[name] for name in names if made[name] is not None} == said
    assert (made["redacted"], made["hashed"]) == (redacted, hashed)


@pytest.mark.parametrize(
    "bad", [field(STATUS, REDACTED), field(STATUS, HASHED, b"0" * 8), field(STATUS, PRESENT, b"1")]
)
def test_a_number_that_is_none_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="a number does not have 8 bytes"):
        columns(bad)
