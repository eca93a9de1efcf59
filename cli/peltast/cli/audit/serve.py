"""``peltast audit serve``: the audit log over HTTP, for whom the kernel or a certificate vouches."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import typer
import uvicorn
from cryptography import x509
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from peltast.audit.api.application import AuditApi, Caller
from peltast.audit.store.migrate import AUDITOR_ROLE
from peltast.cli.audit.connection import Database, connected
from peltast.cli.console import out, print_error, run_until_stopped
from peltast.cli.logs import log_to_stderr
from peltast.cli.options import State
from peltast.cli.settings import sockets_folder
from peltast.identity.certificates import NotAnSvid, spiffe_id_of

__all__ = ["caller_named", "serve"]

_STATE = Path(".peltast")
_STATEMENT_MILLISECONDS = 30_000
_MAX_HEAD_BYTES = 512 * 1024
"""Of a request: a path of 64 KB, percent-encoded, and some room."""
_MAX_CONNECTIONS = 64

_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}")

CallerOf = Callable[[asyncio.Transport], Caller]


class CannotServe(ValueError):
    """The options do not make a service that is safe."""


def serve(
    state: State = _STATE,
    database: Database = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Mutual TLS here, instead of a Unix socket in the state.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The server's certificate chain, PEM.", dir_okay=False)
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key, PEM.", dir_okay=False)] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Who issues clients' certificates, PEM.", dir_okay=False)
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ROLE", help="A client's SPIFFE ID or common name, and its role of the database."),
    ] = None,
) -> None:
    """Serves the audit log over HTTP: see docs/audit-query.md, and /openapi.json there.

    On a Unix socket that only its owner may open, unless --listen is given, which takes clients by certificate only.
    """
    log_to_stderr()
    try:
        roles = dict(map(_mapping, role or []))
        _check_options(listen, certificate, key, client_ca, roles)
        tls = _tls(certificate, key, client_ca) if certificate and key and client_ca else None
        listening = _tcp(listen) if listen else _unix(sockets_folder(state) / "audit.sock")
    except (CannotServe, OSError, ssl.SSLError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    api = AuditApi(partial(_connected, state, database))
    own_role = AUDITOR_ROLE if database is None else None
    caller_of = partial(_caller_by_certificate, roles) if tls else partial(_caller_by_kernel, own_role)
    run_until_stopped(_serve(api.application, listening, tls, caller_of))


async def _serve(app: ASGIApp, listening: socket.socket, tls: ssl.SSLContext | None, caller_of: CallerOf) -> int:
    config = uvicorn.Config(
        app,
        http=type("Protocol", (_Protocol,), {"caller_of": staticmethod(caller_of)}),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        ssl_context_factory=(lambda *_: tls) if tls else None,
    )
    name = listening.getsockname()
    out.print(f"Serving at {name if isinstance(name, str) else f'{name[0]}:{name[1]}'}", markup=False)
    try:
        await _Server(config).serve([listening])
    finally:
        if isinstance(name, str):
            Path(name).unlink(missing_ok=True)  # noqa: ASYNC240 - the last thing that is done
    return 0


class _Server(uvicorn.Server):
    """Signals are the command's to take."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """Each connection knows its caller, who is the same for all its requests."""

    caller_of: CallerOf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "caller": type(self).caller_of(transport)}


@asynccontextmanager
async def _connected(state: Path, database: str | None, role: str | None) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A connection that reads as `role` may, and not for longer than a while."""
    async with connected(state, database, role or AUDITOR_ROLE) as connection:
        settings = {
            "statement_timeout": str(_STATEMENT_MILLISECONDS),
            "default_transaction_read_only": "on",
            **({"role": role} if role else {}),
        }
        for name, value in settings.items():
            await connection.execute("SELECT set_config($1, $2, false)", name, value)
        yield connection


# Callers --------------------------------------------------------------------------------------------------------------


def _caller_by_kernel(role: str | None, transport: asyncio.Transport) -> Caller:
    """The user at the other end of a Unix socket: the socket's mode lets nobody else in but root."""
    credentials = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("3i", credentials)
    return Caller(f"uid:{user}", role, known=user in (0, os.geteuid()))


def _caller_by_certificate(roles: Mapping[str, str], transport: asyncio.Transport) -> Caller:
    tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
    der = tls.getpeercert(binary_form=True)
    assert der is not None, "the handshake asks for it"
    return caller_named(roles, x509.load_der_x509_certificate(der))


def caller_named(roles: Mapping[str, str], certificate: x509.Certificate) -> Caller:
    """Whose certificate it is, by SPIFFE ID, or where it has none by common name; and the role of that name."""
    try:
        name = str(spiffe_id_of(certificate))
    except NotAnSvid as error:
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        name = str(names[0].value) if len(names) == 1 else ""
        if not name or "://" in name or _has_uri(certificate):
            return Caller(f"a certificate without a name ({error})", None, known=False)
    return Caller(name, roles.get(name), known=name in roles)


def _has_uri(certificate: x509.Certificate) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    return bool(names.get_values_for_type(x509.UniformResourceIdentifier))


# Options --------------------------------------------------------------------------------------------------------------


def _mapping(text: str) -> tuple[str, str]:
    name, _, role = text.rpartition("=")
    if not name or not _ROLE.fullmatch(role):
        raise CannotServe(f"--role: {text!r} is given; allowed: NAME=ROLE, such as {'spiffe://a/b=auditor'!r}")
    return name, role


def _check_options(listen: str | None, *options: object) -> None:
    *files, roles = options
    if listen and not all(files):
        raise CannotServe("--listen is by mutual TLS only: it needs --certificate, --key and --client-ca")
    if not listen and (any(files) or roles):
        raise CannotServe("--certificate, --key, --client-ca and --role are for --listen")


def _tls(certificate: Path, key: Path, client_ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client_ca)
    context.load_cert_chain(certificate, key)
    context.num_tickets = 0  # no resumption: it would carry a certificate past its end
    return context


def _tcp(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise CannotServe(f"--listen: {listen!r} is given; allowed: HOST:PORT")
    host = host.strip("[]")
    return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def _unix(path: Path) -> socket.socket:
    """A socket that only its owner may open, from its first moment."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.exists():
        try:
            listening.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # of one that was killed
        else:
            raise CannotServe(f"{path} is served already")
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    return listening
