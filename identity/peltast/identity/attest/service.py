"""Join tokens for operators, on the control plane's own socket."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from spiffe import SpiffeId
from spiffe.spiffe_id.spiffe_id import SpiffeIdError

from peltast.identity.attest.join_token import TOKEN_LIFETIME, JoinTokens
from peltast.identity.protos.join_pb2 import GenerateRequest, GenerateResponse
from peltast.identity.rpc import generic_handler

__all__ = ["JOIN_TOKENS_METHOD", "join_token_handler"]

_NAME = "peltast.identity.v1.JoinTokens"
JOIN_TOKENS_METHOD = f"/{_NAME}/Generate"

Context = grpc.aio.ServicerContext[GenerateRequest, GenerateResponse]


def join_token_handler(
    tokens: JoinTokens, is_registered: Callable[[SpiffeId], bool]
) -> grpc.GenericRpcHandler[Any, Any]:
    """The service. Who may call it is settled by who may open the socket."""

    async def generate(request: GenerateRequest, context: Context) -> GenerateResponse:
        try:
            spiffe_id = SpiffeId(request.spiffe_id)
        except SpiffeIdError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"spiffe_id {request.spiffe_id!r}: {error}")
        if not is_registered(spiffe_id):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no workload has the SPIFFE ID {spiffe_id}")
        token = tokens.generate(spiffe_id, datetime.now(UTC))
        return GenerateResponse(token=token, expires_in_seconds=TOKEN_LIFETIME // timedelta(seconds=1))

    return generic_handler(_NAME, {"Generate": (generate, GenerateRequest, GenerateResponse)})
