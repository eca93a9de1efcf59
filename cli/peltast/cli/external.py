"""A PostgreSQL that others run, for the store."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

import asyncpg

from peltast.audit.store.embedded import SUPERUSER
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE, EXPORTER_ROLE
from peltast.audit.store.url import as_role, check_database_url, with_password
from peltast.identity.files import make_private_folder, write_private

__all__ = ["ExternalPostgres"]

_ITERATIONS = 4096


class ExternalPostgres:
    """The database at `url`, which is its owner's; the passwords of the other roles are kept in `folder`.

    Raises:
        DatabaseUnusable: see `check_database_url`.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._url = check_database_url(url)
        # Out of the environment at once: children must not inherit it, and other roles have other passwords.
        if password := os.environ.pop("PGPASSWORD", ""):
            self._url = with_password(self._url, password)
        self._passwords = folder.absolute() / "database.pgpass"

    def url(self, role: str) -> str:
        """Where `role` connects. No password is in it, but the owner's where it was given so."""
        return self._url if role == SUPERUSER else as_role(self._url, role, str(self._passwords))

    async def set_passwords(self, connection: asyncpg.Connection[Any]) -> None:
        """Gives the collector, the auditor and the exporter passwords of their own, each time the same."""
        if not self._passwords.exists():
            roles = (COLLECTOR_ROLE, AUDITOR_ROLE, EXPORTER_ROLE)
            lines = (f"*:*:*:{role}:{secrets.token_urlsafe(32)}\n" for role in roles)
            make_private_folder(self._passwords.parent)
            write_private(self._passwords, "".join(lines).encode())
        for line in self._passwords.read_text().splitlines():
            role, password = line.split(":")[-2:]
            await connection.execute(f"ALTER ROLE {role} PASSWORD '{_scram_verifier(password)}'")


def _scram_verifier(password: str) -> str:
    """What the server keeps of a password (RFC 5803): the password itself is neither sent nor logged."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(each).decode() for each in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"
