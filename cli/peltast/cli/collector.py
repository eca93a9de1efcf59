"""The collector's process."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import asyncpg
import grpc
import structlog
import typer
from cryptography import x509

from peltast.audit.collector.checkpoints import Checkpoints, Publisher
from peltast.audit.collector.collect import Collector
from peltast.audit.collector.keyring import Keyring
from peltast.audit.collector.keys import load_or_create_keys
from peltast.audit.collector.service import collector_methods
from peltast.audit.shipper import COLLECTOR_SERVICE, Shipper
from peltast.audit.sinks import Sink
from peltast.audit.store.partitions import keep_partitions
from peltast.audit.store.url import DatabaseUnusable, check_database_url
from peltast.cli.acts import SPOOL_BYTES, ActLog
from peltast.cli.console import print_error, run_until_stopped
from peltast.cli.logs import log_to_stderr
from peltast.cli.options import BasePort, CheckpointSinks, State, TrustDomainOption, sinks_of
from peltast.cli.settings import DEFAULT_BASE_PORT, DEFAULT_TRUST_DOMAIN, ControlSettings, take_join_token
from peltast.cli.signing import load_or_create_signer
from peltast.cli.starts import Starter
from peltast.identity.acts import Act
from peltast.identity.client import IdentityClient
from peltast.identity.files import make_private_folder
from peltast.identity.rpc import (
    caller,
    channel_credentials,
    generic_handler,
    open_channel,
    server_credentials,
    server_options,
)

__all__ = ["app"]

_MAX_CONNECTIONS = 10
_COMMAND_TIMEOUT_SECONDS = 30.0
_STOP_SECONDS = 0.5

log = structlog.get_logger()

app = typer.Typer(add_completion=False)


@app.command()
def collector(
    state: State,
    database: Annotated[str, typer.Option(metavar="URL", help="PostgreSQL, as the role that collects.")],
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    base_port: BasePort = DEFAULT_BASE_PORT,
    checkpoints: CheckpointSinks = None,
) -> None:
    """Takes in audit records and commits them to PostgreSQL."""
    log_to_stderr()
    settings = ControlSettings(state, trust_domain, base_port)
    try:
        check_database_url(database)
    except DatabaseUnusable as error:
        print_error(error)
        raise typer.Exit(1) from None
    run_until_stopped(_run(settings, database, sinks_of(state, checkpoints), take_join_token()))


async def _run(settings: ControlSettings, database: str, sinks: Mapping[str, Sink], token: str) -> None:
    folder: Path = settings.state / "collector"
    ports = settings.ports
    roots = settings.trust_bundle.read_bytes()
    identity = IdentityClient(folder, roots, settings.address(ports.join), settings.address(ports.mtls))
    await identity.start(token)
    keys = load_or_create_keys(make_private_folder(settings.audit_keys))
    address = settings.address(ports.collector)

    def own_channel() -> grpc.aio.Channel:
        svid = identity.svid
        return open_channel(address, channel_credentials(roots, svid.chain_pem, svid.key_pem))

    # What it finds out about spools is on record in one of its own, which it ships to itself.
    shipper = Shipper(folder / "spool", SPOOL_BYTES, own_channel)
    starter = Starter(folder / "spool", folder / "audit-start.sha256", lambda: identity.svid)
    acts = ActLog(folder / "spool", str(identity.svid.spiffe_id), lambda: starter.start(keys.public))

    def report(action: str, subject: str, detail: str) -> None:
        try:
            acts.report(Act("", action, subject, allowed=False, detail=detail))
        except OSError as error:
            log.exception("act not recorded", action=action, object=subject, error=str(error))

    taking = Collector(Keyring(keys, x509.load_pem_x509_certificates(roots)), report)
    # Without a connection yet: the store may come later than we do, and may go away.
    pool = asyncpg.create_pool(
        database, min_size=0, max_size=_MAX_CONNECTIONS, command_timeout=_COMMAND_TIMEOUT_SECONDS
    )
    async with pool:
        server = grpc.aio.server(options=server_options)
        unary, streams = collector_methods(pool, taking, caller)
        server.add_generic_rpc_handlers((generic_handler(COLLECTOR_SERVICE, unary, streams),))

        def current() -> tuple[bytes, bytes, bytes]:
            return identity.svid.key_pem, identity.svid.chain_pem, roots

        server.add_secure_port(address, server_credentials(current, require_client=True))
        await server.start()
        signer = load_or_create_signer(settings.state, settings.trust_domain)
        checkpoints = Checkpoints(pool, signer, _publishers(folder / "audit" / "published", sinks))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(identity.keep_fresh())
                group.create_task(keep_partitions(pool))
                group.create_task(shipper.run())
                group.create_task(acts.beat())
                group.create_task(server.wait_for_termination())
                group.create_task(checkpoints.run())
        finally:
            # Streams end when their other ends like, and whoever stops us does not wait for long.
            await asyncio.wait([asyncio.ensure_future(server.stop(grace=None))], timeout=_STOP_SECONDS)
            acts.close()
            await checkpoints.finish()


def _publishers(folder: Path, sinks: Mapping[str, Sink]) -> list[Publisher]:
    def place(name: str) -> Path:
        return folder / hashlib.sha256(name.encode()).hexdigest()[:16]

    return [Publisher(name, sink, place(name)) for name, sink in sinks.items()]
