"""Waiting until something is up, and finding out beforehand what cannot come up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from peltast.policies.snapshot import Snapshot

__all__ = ["NotReady", "busy_addresses", "envoy_is_ready", "mesh_addresses", "takes_connections", "wait_until"]

START_SECONDS = 30.0
_POLL_SECONDS = 0.02
_MAX_ANSWER_BYTES = 64 * 1024


class NotReady(RuntimeError):
    """A part of the mesh did not come up in time."""


async def wait_until(condition: Callable[[], Awaitable[bool]], otherwise: Callable[[], str]) -> None:
    """Waits until `condition` holds.

    Raises:
        NotReady: it did not in time; says `otherwise`.
    """
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await condition():  # noqa: ASYNC110 - other processes set no Event
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError as error:
        raise NotReady(f"not within {START_SECONDS:g} s: {otherwise()}") from error


async def takes_connections(host: str, port: int) -> bool:
    """Whether something listens there."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def envoy_is_ready(admin: Path) -> bool:
    """Whether the Envoy with this admin socket has all its listeners, and its policies.

    Asked there and not at a listener: to connect and go away would be a refused handshake, with a record.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(admin)
        writer.write(b"GET /ready HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")
        answer = await reader.read(_MAX_ANSWER_BYTES)
    except OSError:
        return False
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


def mesh_addresses(snapshot: Snapshot) -> list[tuple[str, int]]:
    """Where sidecars and applications that are started here will listen."""
    addresses = []
    for workload in snapshot.workloads.values():
        if workload.command:
            ports = [*(port.port for port in workload.ports), *(port.target_port for port in workload.ports)]
            ports += [route.port for route in workload.routes]
            addresses += [(workload.address, port) for port in ports]
    return addresses


def busy_addresses(addresses: Iterable[tuple[str, int]]) -> list[str]:
    """Those of `addresses` that cannot be listened on, each with the reason."""
    return [f"{host}:{port} ({reason})" for host, port in addresses if (reason := _why_not(host, port))]


def _why_not(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: what only lingers from connections of before is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror
    return None
