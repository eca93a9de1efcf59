"""Getting SVIDs from the control plane, and keeping one fresh."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import structlog
from cryptography import x509

from peltast.identity.protos.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from peltast.identity.rpc import channel_credentials, open_channel
from peltast.identity.svid import Svid, load_svid, new_key_and_csr, rotation_time, save_svid

__all__ = ["IdentityClient", "SvidExpired", "join"]

_METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_TIMEOUT_SECONDS = 10.0
_RETRY_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

log = structlog.get_logger()


class SvidExpired(RuntimeError):
    """The SVID at hand has ended, and cannot be renewed by itself: a new join token is needed."""


async def join(address: str, roots: bytes, token: str) -> Svid:
    """The first SVID of this node, for a join token.

    Raises:
        grpc.aio.AioRpcError: the control plane cannot be reached, or refuses.
    """
    async with open_channel(address, channel_credentials(roots)) as channel:
        return await _create(channel, [("authorization", f"Bearer {token}")])


async def renew(address: str, roots: bytes, svid: Svid) -> Svid:
    """The next SVID, for the one at hand.

    Raises:
        grpc.aio.AioRpcError: the control plane cannot be reached, or refuses.
    """
    credentials = channel_credentials(roots, svid.chain_pem, svid.key_pem)
    async with open_channel(address, credentials) as channel:
        return await _create(channel, [])


async def _create(channel: grpc.aio.Channel, metadata: list[tuple[str, str]]) -> Svid:
    key, csr = new_key_and_csr()
    call = channel.unary_unary(
        _METHOD,
        request_serializer=IstioCertificateRequest.SerializeToString,
        response_deserializer=IstioCertificateResponse.FromString,
    )
    request = IstioCertificateRequest(csr=csr.decode())
    response = await call(request, metadata=tuple(metadata), timeout=_TIMEOUT_SECONDS, wait_for_ready=True)
    chain = tuple(x509.load_pem_x509_certificate(certificate.encode()) for certificate in response.cert_chain)
    return Svid(key, chain[:-1])  # the root comes last, and is not shown: peers have it


class IdentityClient:
    """This process's identity: an SVID that is kept on disk and renewed at half of its life.

    Whoever needs it reads `svid`, and learns of the next one from :meth:`changes`.
    """

    def __init__(self, folder: Path, roots: bytes, join_address: str, mtls_address: str) -> None:
        self._folder = folder
        self._join_address = join_address
        self._mtls_address = mtls_address
        self._changed = asyncio.Condition()
        self._svid: Svid | None = None
        self.roots = roots

    @property
    def svid(self) -> Svid:
        """The SVID in force."""
        assert self._svid is not None, "start() comes first"
        return self._svid

    async def start(self, token: str) -> None:
        """Takes up the SVID that was kept, or joins with `token`."""
        svid = load_svid(self._folder, datetime.now(UTC)) or await join(self._join_address, self.roots, token)
        await self._take(svid)

    async def keep_fresh(self) -> None:
        """Renews for ever. While the control plane is away the SVID at hand is used, and renewal is tried again.

        Raises:
            SvidExpired: it was away for too long, or this machine was.
        """
        while True:
            due = rotation_time(self.svid, random.random())  # noqa: S311 - spreads load, hides nothing
            await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
            await self._renew_with_retries()

    async def changes(self) -> AsyncIterator[Svid]:
        """The SVID in force, and every one after it."""
        known: Svid | None = None
        while True:
            async with self._changed:
                while self._svid is known:
                    await self._changed.wait()
                known = self.svid
            yield known

    async def _renew_with_retries(self) -> None:
        attempt = 0
        while True:
            try:
                await self._take(await renew(self._mtls_address, self.roots, self.svid))
            except grpc.aio.AioRpcError as error:
                if datetime.now(UTC) >= self.svid.expires:
                    raise SvidExpired(f"the SVID of {self.svid.spiffe_id} ended {self.svid.expires}") from error
                delay = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)]
                log.warning("svid not renewed", error=error.details(), again_in_seconds=delay)
                attempt += 1
                await asyncio.sleep(delay)
            else:
                return

    async def _take(self, svid: Svid) -> None:
        save_svid(self._folder, svid)
        async with self._changed:
            self._svid = svid
            self._changed.notify_all()
        log.info("svid in force", spiffe_id=str(svid.spiffe_id), expires=svid.expires.isoformat())
