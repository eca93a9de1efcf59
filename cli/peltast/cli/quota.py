"""``peltast quota``: the quota service, for any Envoy's rate limit filter and for who borrows tokens."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import structlog
import typer

from peltast.authz.quota.descriptors import load_limits
from peltast.authz.quota.grpc import LEASES, RATE_LIMITS, lease_methods, rate_limit_methods
from peltast.authz.quota.lease_service import LeaseService
from peltast.authz.quota.limits import Domain
from peltast.authz.quota.rate_limit_service import RateLimitService
from peltast.cli.console import out, print_error, print_problems, run_until_stopped
from peltast.cli.counting import counters_at
from peltast.cli.logs import log_to_stderr
from peltast.cli.operator_acts import note_act
from peltast.cli.options import RedisUrl
from peltast.cli.settings import operator_socket, sockets_folder
from peltast.identity.rpc import caller, generic_handler, server_credentials, server_options
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.sources.folder import Files, read_folder, watch_folder

__all__ = ["app"]

_STATE = Path(".peltast")
_MAX_MESSAGE_BYTES = 64 * 1024
_MAX_CALLS = 1_000
"""At a time; a further one is refused at once (RESOURCE_EXHAUSTED)."""
_RECEIVE = "grpc.max_receive_message_length"
_OPTIONS = (*((name, value) for name, value in server_options if name != _RECEIVE), (_RECEIVE, _MAX_MESSAGE_BYTES))
_STOP_SECONDS = 0.5
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[^\s:\[\]/]+):([0-9]{1,5})")

Domains = Mapping[str, Domain]

log = structlog.get_logger()

app = typer.Typer(help="Quotas, counted in one place for many.", no_args_is_help=True, add_completion=False)


class CannotServe(ValueError):
    """The options do not make a service that is safe."""


@dataclass(frozen=True)
class _Tls:
    """Files in PEM, read anew at every handshake: who renews them need not restart us."""

    certificate: Path
    key: Path
    client_ca: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Key, chain and roots."""
        return self.key.read_bytes(), self.certificate.read_bytes(), self.client_ca.read_bytes()


@app.callback()
def _group() -> None:
    """Keeps `serve` a command of a group, which will have more."""


@app.command()
def serve(
    configuration: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of descriptor files.", exists=True, file_okay=False)
    ],
    state: Annotated[Path, typer.Option(help="Where the Unix socket is made.", file_okay=False)] = _STATE,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Mutual TLS here, instead of a Unix socket in the state.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="The server's certificate chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="Who issues callers' SVIDs, PEM.")] = None,
    redis: RedisUrl = None,
    redis_cluster: Annotated[bool, typer.Option(help="The Redis is a cluster.")] = False,
) -> None:
    """Serves Rate Limit Service v3 and leases over gRPC: see docs/quota.md.

    On a Unix socket that only its owner may open, unless --listen is given, which takes callers by SVID only.
    """
    log_to_stderr()
    try:
        tls = _tls(listen, certificate, key, client_ca)
        if redis_cluster and redis is None:
            raise CannotServe("--redis-cluster is for --redis")
        counting = counters_at(redis, cluster=redis_cluster)
        domains = load_limits(read_folder(configuration))
        run_until_stopped(_serve(configuration, state, domains, counting, listen or _socket(state), tls))
    except InvalidConfiguration as invalid:
        asyncio.run(_note(state, configuration, invalid))
        print_problems(invalid)
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None


def _tls(listen: str | None, *files: Path | None) -> _Tls | None:
    certificate, key, client_ca = files
    if not listen:
        if any(files):
            raise CannotServe("--certificate, --key and --client-ca are for --listen")
        return None
    if not (found := _ADDRESS.fullmatch(listen)) or int(found[1]) > 65535:
        raise CannotServe(f"--listen: {listen!r} is given; allowed: HOST:PORT")
    if certificate is None or key is None or client_ca is None:
        raise CannotServe("--listen is by mutual TLS only: it needs --certificate, --key and --client-ca")
    tls = _Tls(certificate, key, client_ca)
    tls.read()
    return tls


def _socket(state: Path) -> str:
    return f"unix:{sockets_folder(state) / 'quota.sock'}"


async def _serve(
    configuration: Path, state: Path, domains: Domains, counting: Any, address: str, tls: _Tls | None
) -> int:
    async with counting as counters:
        services = RateLimitService(counters), LeaseService(counters)
        for service in services:
            service.take(domains)
        server = await _started(*services, address, tls)
        out.print(f"Serving at {address.removeprefix('unix:')}", markup=False)
        await _note(state, configuration, domains)
        try:
            async for files in watch_folder(configuration):
                read = _read(files)
                if read == domains:
                    continue
                if isinstance(read, InvalidConfiguration):
                    log.error("descriptors refused", problems=str(read))
                else:
                    domains = read
                    for service in services:
                        service.take(domains)
                    log.info("descriptors taken", domains=len(domains))
                await _note(state, configuration, read)
        finally:
            await asyncio.wait([asyncio.ensure_future(server.stop(grace=_STOP_SECONDS))], timeout=2 * _STOP_SECONDS)
    return 0


def _read(files: Files | InvalidConfiguration) -> Domains | InvalidConfiguration:
    """The domains of changed files if all of them are sound; else the last good ones stay in force."""
    if isinstance(files, InvalidConfiguration):
        return files
    try:
        return load_limits(files)
    except InvalidConfiguration as invalid:
        return invalid


async def _note(state: Path, configuration: Path, read: Domains | InvalidConfiguration) -> None:
    """Puts on record what is in force, or why not, where there is a mesh with this state: quotas need none."""
    if isinstance(read, InvalidConfiguration):
        action, detail = "limits.refuse", str(read)
    else:
        action, detail = "limits.take", f"domains: {', '.join(sorted(read))}"
    if operator_socket(state).exists():
        await note_act(state, action, str(configuration), detail)


async def _started(limits: RateLimitService, leases: LeaseService, address: str, tls: _Tls | None) -> grpc.aio.Server:
    who: Callable[[Any], object] = caller if tls else _owner
    server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CALLS)
    server.add_generic_rpc_handlers(
        (
            generic_handler(RATE_LIMITS, rate_limit_methods(limits, who)),
            generic_handler(LEASES, lease_methods(leases, who)),
        )
    )
    try:
        if tls:
            server.add_secure_port(address, server_credentials(tls.read, require_client=True))
        else:
            _listen_privately(server, address)
    except RuntimeError as error:
        raise CannotServe(str(error)) from error
    await server.start()
    return server


def _listen_privately(server: grpc.aio.Server, address: str) -> None:
    """On a Unix socket that only its owner may open, from its first moment."""
    Path(address.removeprefix("unix:")).unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        server.add_insecure_port(address)
    finally:
        os.umask(before)


def _owner(_: object) -> str:
    """Whoever may open the socket."""
    return "owner"
