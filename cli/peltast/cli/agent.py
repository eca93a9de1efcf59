"""The agent's process: a sidecar's Envoy, its identity, and the shipping of its audit records."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from pathlib import Path

import grpc

from peltast.audit.shipper import Shipper
from peltast.cli.settings import ControlSettings
from peltast.identity.client import IdentityClient
from peltast.identity.files import make_private_folder, write_private
from peltast.identity.rpc import channel_credentials, open_channel
from peltast.proxy.agent.agent import Agent, AgentSettings
from peltast.proxy.sidecar.binary import find_envoy

__all__ = ["run_agent"]


async def run_agent(settings: AgentSettings, control: ControlSettings, token: str) -> None:
    """Runs for ever."""
    envoy = find_envoy()
    roots = control.trust_bundle.read_bytes()
    identity = IdentityClient(settings.state, roots, control.address(control.ports.join), settings.control_address)
    collector_address = control.address(control.ports.collector)

    def collector_channel() -> grpc.aio.Channel:
        svid = identity.svid
        return open_channel(collector_address, channel_credentials(roots, svid.chain_pem, svid.key_pem))

    leave_hash_key(control.state / "collector" / "audit", settings.spool)
    shipper = Shipper(settings.spool, settings.spool_bytes, collector_channel)
    await identity.start(token)
    async with asyncio.TaskGroup() as group:
        group.create_task(shipper.run())
        group.create_task(Agent(settings, identity, envoy).run())


def leave_hash_key(audit: Path, spool: Path) -> None:
    """Leaves the mesh's key for hashes in records where the module of the sidecar with this `spool` reads it.

    The key is in `audit`, made by whoever needs it first.
    """
    make_private_folder(audit.parent)
    key, own = make_private_folder(audit) / "hash.key", audit / f"hash.key.{os.getpid()}"
    if not key.exists():
        write_private(own, secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            key.hardlink_to(own)  # whole, and once, whoever else makes one at this moment
        own.unlink()
    write_private(make_private_folder(spool) / "hash-key", key.read_bytes())
