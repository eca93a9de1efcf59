"""The collector's process."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import grpc

from peltast.audit.collector.checkpoints import Checkpoints, Publisher
from peltast.audit.collector.service import collector_methods
from peltast.audit.shipper import COLLECTOR_SERVICE
from peltast.audit.sinks import Sink
from peltast.audit.store.partitions import keep_partitions
from peltast.cli.settings import ControlSettings
from peltast.cli.signing import load_or_create_signer
from peltast.identity.client import IdentityClient
from peltast.identity.rpc import caller, generic_handler, server_credentials, server_options

__all__ = ["run_collector"]

_MAX_CONNECTIONS = 10
_COMMAND_TIMEOUT_SECONDS = 30.0
_STOP_SECONDS = 0.5


async def run_collector(settings: ControlSettings, database: str, sinks: Mapping[str, Sink], token: str) -> None:
    """Runs for ever."""
    folder: Path = settings.state / "collector"
    ports = settings.ports
    roots = settings.trust_bundle.read_bytes()
    identity = IdentityClient(folder, roots, settings.address(ports.join), settings.address(ports.mtls))
    await identity.start(token)
    # Without a connection yet: the store may come later than we do, and may go away.
    pool = asyncpg.create_pool(
        database, min_size=0, max_size=_MAX_CONNECTIONS, command_timeout=_COMMAND_TIMEOUT_SECONDS
    )
    async with pool:
        server = grpc.aio.server(options=server_options)
        methods = collector_methods(pool, caller)
        server.add_generic_rpc_handlers((generic_handler(COLLECTOR_SERVICE, streams=methods),))

        def current() -> tuple[bytes, bytes, bytes]:
            return identity.svid.key_pem, identity.svid.chain_pem, roots

        server.add_secure_port(settings.address(ports.collector), server_credentials(current, require_client=True))
        await server.start()
        signer = load_or_create_signer(settings.state, settings.trust_domain)
        checkpoints = Checkpoints(pool, signer, _publishers(folder / "audit" / "published", sinks))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(identity.keep_fresh())
                group.create_task(keep_partitions(pool))
                group.create_task(server.wait_for_termination())
                group.create_task(checkpoints.run())
        finally:
            # Streams end when their other ends like, and whoever stops us does not wait for long.
            await asyncio.wait([asyncio.ensure_future(server.stop(grace=None))], timeout=_STOP_SECONDS)
            await checkpoints.finish()


def _publishers(folder: Path, sinks: Mapping[str, Sink]) -> list[Publisher]:
    def place(name: str) -> Path:
        return folder / hashlib.sha256(name.encode()).hexdigest()[:16]

    return [Publisher(name, sink, place(name)) for name, sink in sinks.items()]
