"""Rows of the store, as an export finds them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from peltast.audit.columns import COLUMNS

STOREFRONT = "spiffe://mesh.example/ns/bookshop/sa/storefront"
CATALOG = "spiffe://mesh.example/ns/bookshop/sa/catalog"
SPOOL = bytes(range(16))
NOTHING = dict.fromkeys((*COLUMNS, "namespace", "mac", "redacted", "hashed"))


def row(**fields: Any) -> dict[str, Any]:
    """A row of the store with `fields`, and nothing else that a record may leave out."""
    own = {
        "spool": SPOOL,
        "sequence": 7,
        "leaf": 41,
        "owner": CATALOG,
        "namespace": "bookshop",
        "schema": 1,
        "kind": "decision",
        "time": datetime(2026, 11, 22, 0, 0, 1, 234567, UTC),
        "time_ns": 1_795_305_601_234_567_891,
        "body": b"body",
        "link": b"\xab" * 32,
    }
    return {**NOTHING, **own, **fields}
