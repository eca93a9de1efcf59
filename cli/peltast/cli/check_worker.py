"""A process of the check service: started by the control plane, which tells it what to decide by.

Several share the ports (`SO_REUSEPORT`): the kernel gives each connection to one of them. What the control plane says
comes by standard input; standard output says of each revision that it is in force.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import ssl
import sys
from pathlib import Path
from typing import Any

import grpc
import structlog
import uvloop
from cryptography import x509
from spiffe import SpiffeId

from peltast.authz.check.frames import Kind, frame, read_frame
from peltast.authz.check.front import CheckFront
from peltast.authz.check.grpc import MAX_QUESTION_BYTES, authorization_handler, serve_health
from peltast.authz.check.http import HttpServer
from peltast.authz.check.pool import EvaluatorPool
from peltast.cli.logs import log_to_stderr
from peltast.cli.settings import LOOPBACK, ControlSettings
from peltast.identity.certificates import spiffe_id_of
from peltast.identity.rpc import caller, server_credentials, server_options

__all__ = ["main"]

DRAIN_SECONDS = 1.5
"""How long requests may go on once the process is told to end: those who wait for it wait 2 s."""

TELL_SECONDS = 1.0
"""How often the control plane is told what was counted."""

log = structlog.get_logger()


class CheckWorker:
    """The ports, and what is behind them."""

    def __init__(self, settings: ControlSettings) -> None:
        self._settings = settings
        self._pool = EvaluatorPool()
        self._front = CheckFront(self._pool)
        self._svid = settings.state / "control" / "svid.pem"
        self._tls = self._server_tls()
        self._http = HttpServer(self._front, _caller_of)

    async def run(self) -> None:
        """Serves until it is told to stop, or nobody tells it anything any more."""
        reader, writer = await _standard_streams()
        # Nothing is listened for before there is something to decide by, and nobody is told so before.
        _, revision = await read_frame(reader)
        await self._front.take(revision)
        gc.freeze()  # what is there now stays: to look it over again and again took a twentieth of the time
        await self._http.start(LOOPBACK, self._settings.ports.check, self._tls)
        rpc, health = await self._serve_rpc()
        writer.write(frame(Kind.IN_FORCE))
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        told = asyncio.create_task(self._follow(reader, writer))
        telling = asyncio.create_task(self._tell_counts(writer))
        await asyncio.wait([told, asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        telling.cancel()
        await health.enter_graceful_shutdown()
        await asyncio.gather(rpc.stop(grace=DRAIN_SECONDS), self._http.drain(DRAIN_SECONDS))
        await self._pool.stop()
        writer.write(frame(Kind.COUNTS, self._front.counted().dump()))

    async def _tell_counts(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            writer.write(frame(Kind.COUNTS, self._front.counted().dump()))

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._obey(*await read_frame(reader), writer)
        except EOFError:
            log.warning("the control plane has gone")

    async def _obey(self, kind: Kind, payload: bytes, writer: asyncio.StreamWriter) -> None:
        if kind is Kind.REVISION:
            await self._front.take(payload)
            writer.write(frame(Kind.IN_FORCE))
        elif kind is Kind.IDENTITY:
            self._tls.load_cert_chain(self._svid)

    def _server_tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self._settings.trust_bundle)
        context.load_cert_chain(self._svid)
        context.num_tickets = 0  # no resumption: it would carry an SVID past its end
        return context

    async def _serve_rpc(self) -> tuple[grpc.aio.Server, Any]:
        own = {"grpc.so_reuseport": 1, "grpc.max_receive_message_length": MAX_QUESTION_BYTES}
        server = grpc.aio.server(options=tuple({**dict(server_options), **own}.items()))  # of two, gRPC takes the first
        server.add_generic_rpc_handlers((authorization_handler(self._front, caller),))
        health = await serve_health(server)
        address = self._settings.address(self._settings.ports.ext_authz)
        server.add_secure_port(address, server_credentials(self._identity, require_client=True))
        await server.start()
        return server, health

    def _identity(self) -> tuple[bytes, bytes, bytes]:
        """Key, chain and roots, asked for at every handshake. Key and chain are in one file."""
        svid = self._svid.read_bytes()
        return svid, svid, self._settings.trust_bundle.read_bytes()


async def _standard_streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


def _caller_of(transport: asyncio.BaseTransport) -> SpiffeId:
    tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
    return spiffe_id_of(x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b""))


def main(state: str, trust_domain: str, base_port: str) -> None:
    """Runs one process."""
    log_to_stderr()
    uvloop.run(CheckWorker(ControlSettings(Path(state), trust_domain, int(base_port))).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
