"""Auditors: roles that log in, read only, and see the namespaces that they were given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import asyncpg

from peltast.audit.store.migrate import AUDITOR_ROLE

__all__ = ["ALL_NAMESPACES", "Auditor", "InvalidAuditor", "add_auditor", "auditors", "remove_auditor"]

ALL_NAMESPACES = "*"

_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")
"""What needs no quotes anywhere, and is cut nowhere (63 bytes)."""

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A name of a Kubernetes namespace (RFC 1123 label)."""


class InvalidAuditor(ValueError):
    """An auditor that cannot be, or is not there."""


@dataclass(frozen=True)
class Auditor:
    """A role, and a namespace that it sees."""

    role: str
    namespace: str

    def __post_init__(self) -> None:
        """Raises InvalidAuditor."""
        if not _ROLE.fullmatch(self.role) or self.role.startswith(("pg_", "peltast_")):
            allowed = "small letters, digits and _, at most 63, but not pg_… or peltast_…"
            raise InvalidAuditor(f"role {self.role!r}: {allowed} are expected")
        if self.namespace != ALL_NAMESPACES and not _NAMESPACE.fullmatch(self.namespace):
            raise InvalidAuditor(f"namespace {self.namespace!r}: the name of one, or {ALL_NAMESPACES}, is expected")


async def add_auditor(connection: asyncpg.Connection[Any], auditor: Auditor) -> None:
    """Lets `auditor.role` see `auditor.namespace`, too. Makes the role where it is missing, without a password.

    Raises:
        InvalidAuditor: there is a role of that name that is no auditor.
    """
    async with connection.transaction():
        await _make_role(connection, auditor.role)
        await connection.execute(
            "INSERT INTO auditors (role, namespace) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            *(auditor.role, auditor.namespace),
        )


async def _make_role(connection: asyncpg.Connection[Any], role: str) -> None:
    if await _is_auditor(connection, role):
        return
    try:
        await connection.execute(f"CREATE ROLE {role} LOGIN")
    except asyncpg.DuplicateObjectError:
        raise InvalidAuditor(f"there is a role {role!r} that is no auditor; give another name") from None
    # A member has the group's rights but cannot become the group, which sees all.
    await connection.execute(f"GRANT {AUDITOR_ROLE} TO {role} WITH INHERIT TRUE, SET FALSE")
    # Settings are not inherited. They keep from accidents; what keeps from the rest is that nothing is granted.
    await connection.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")


async def _is_auditor(connection: asyncpg.Connection[Any], role: str) -> bool:
    query = (
        "SELECT EXISTS (SELECT FROM pg_auth_members "
        "WHERE roleid = $1::text::regrole AND member = to_regrole($2) AND NOT set_option)"
    )
    found: bool = await connection.fetchval(query, AUDITOR_ROLE, role)
    return found


async def auditors(connection: asyncpg.Connection[Any]) -> list[Auditor]:
    """Every auditor with each of its namespaces."""
    rows = await connection.fetch("SELECT role, namespace FROM auditors ORDER BY role, namespace")
    return [Auditor(row["role"], row["namespace"]) for row in rows]


async def remove_auditor(connection: asyncpg.Connection[Any], auditor: Auditor) -> None:
    """Takes a namespace away from a role; with the last one the role goes. Its connections stay open, and see nothing.

    Raises:
        InvalidAuditor: it has not seen that namespace.
    """
    async with connection.transaction():
        query = "DELETE FROM auditors WHERE role = $1 AND namespace = $2"
        if await connection.execute(query, auditor.role, auditor.namespace) == "DELETE 0":
            raise InvalidAuditor(f"{auditor.role!r} is no auditor of {auditor.namespace!r}")
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM auditors WHERE role = $1)", auditor.role):
            await connection.execute(f"DROP ROLE {auditor.role}")
