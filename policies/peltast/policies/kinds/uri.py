"""URIs from which the control plane fetches."""

from __future__ import annotations

from urllib.parse import urlsplit

__all__ = ["uri_problem"]


def uri_problem(uri: str) -> str | None:
    """What is expected instead of `uri`; none where it can be fetched from."""
    allowed = "a URI of a host, with https or http, is expected"
    try:
        parts = urlsplit(uri)
        port_is_sound = parts.port is None or parts.port > 0
    except ValueError:
        return allowed
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_sound or not uri.isascii():
        return allowed
    if parts.username is not None or parts.password is not None:
        return "a URI without a user and a password is expected: they would be shown"
    return None
