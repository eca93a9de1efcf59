"""The agent's process: a sidecar's Envoy, its identity, and the shipping of its audit records."""

from __future__ import annotations

import asyncio

import grpc

from peltast.audit.shipper import Shipper
from peltast.identity.client import IdentityClient
from peltast.identity.rpc import channel_credentials, open_channel
from peltast.proxy.agent.agent import Agent, AgentSettings
from peltast.proxy.sidecar.binary import find_envoy

__all__ = ["run_agent"]


async def run_agent(
    settings: AgentSettings, roots: bytes, join_address: str, collector_address: str, token: str
) -> None:
    """Runs for ever."""
    envoy = find_envoy()
    identity = IdentityClient(settings.state, roots, join_address, settings.control_address)

    def collector_channel() -> grpc.aio.Channel:
        svid = identity.svid
        return open_channel(collector_address, channel_credentials(roots, svid.chain_pem, svid.key_pem))

    shipper = Shipper(settings.spool, settings.spool_bytes, collector_channel)
    await identity.start(token)
    async with asyncio.TaskGroup() as group:
        group.create_task(shipper.run())
        group.create_task(Agent(settings, identity, envoy).run())
