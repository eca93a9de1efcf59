"""What asking a database can end with."""

from __future__ import annotations

import asyncpg

__all__ = ["DATABASE_ERRORS"]

DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Besides `OSError`. asyncpg gives its internal error, too, when a server dies between two messages of one answer."""
