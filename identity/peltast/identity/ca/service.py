"""Istio's certificate service, on two ports: with a join token for the first SVID, with an SVID for the next."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NoReturn

import grpc
from spiffe import SpiffeId

from peltast.identity.acts import Act, Report
from peltast.identity.attest.join_token import JoinTokens
from peltast.identity.ca.authority import Authority, BadRequest, issue
from peltast.identity.certificates import NotAnSvid, pem
from peltast.identity.protos.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from peltast.identity.rpc import caller, generic_handler

__all__ = ["CertificateService"]

_NAME = "istio.v1.auth.IstioCertificateService"
_BEARER = "Bearer "

Context = grpc.aio.ServicerContext[IstioCertificateRequest, IstioCertificateResponse]


class CertificateService:
    """Issues SVIDs to callers that may have one.

    `is_registered` tells whether a SPIFFE ID still belongs to somebody: a workload that was taken out of the mesh
    cannot renew. Every issue and refusal is reported.
    """

    def __init__(
        self, authority: Authority, tokens: JoinTokens, is_registered: Callable[[SpiffeId], bool], report: Report
    ) -> None:
        self._authority = authority
        self._tokens = tokens
        self._is_registered = is_registered
        self._report = report

    def for_join_port(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service for callers that have a join token and no SVID."""
        return self._handler(self._by_token)

    def for_mtls_port(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service for callers that have an SVID."""
        return self._handler(self._by_svid)

    @staticmethod
    def _handler(method: Any) -> grpc.GenericRpcHandler[Any, Any]:
        return generic_handler(
            _NAME, {"CreateCertificate": (method, IstioCertificateRequest, IstioCertificateResponse)}
        )

    async def _by_token(self, request: IstioCertificateRequest, context: Context) -> IstioCertificateResponse:
        metadata = dict(context.invocation_metadata() or ())
        token = str(metadata.get("authorization", "")).removeprefix(_BEARER)
        spiffe_id = self._tokens.redeem(token, datetime.now(UTC))
        if spiffe_id is None:
            await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, context.peer(), "no such join token")
        return await self._create(request, context, spiffe_id)

    async def _by_svid(self, request: IstioCertificateRequest, context: Context) -> IstioCertificateResponse:
        try:
            spiffe_id = caller(context)
        except NotAnSvid as error:
            await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, context.peer(), str(error))
        return await self._create(request, context, spiffe_id)

    async def _create(
        self, request: IstioCertificateRequest, context: Context, spiffe_id: SpiffeId
    ) -> IstioCertificateResponse:
        if not self._is_registered(spiffe_id):
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, str(spiffe_id), "it is not registered")
        try:
            chain = issue(self._authority, request.csr.encode(), spiffe_id, datetime.now(UTC))
        except BadRequest as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(spiffe_id), str(error))
        serial = f"{chain[0].serial_number:x}"
        self._report(Act(str(spiffe_id), "svid.issue", serial, allowed=True))
        return IstioCertificateResponse(cert_chain=[pem(certificate).decode() for certificate in chain])

    async def _refuse(self, context: Context, code: grpc.StatusCode, actor: str, detail: str) -> NoReturn:
        self._report(Act(actor, "svid.issue", "", allowed=False, detail=detail))
        await context.abort(code, detail)
        raise AssertionError("abort does not return")
