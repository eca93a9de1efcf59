"""Revocation of tokens over gRPC, for operators on the control plane's own socket."""

from __future__ import annotations

from typing import Any

import grpc

from peltast.authz.protos.revocation_pb2 import ListRequest, ListResponse, RevokeResponse
from peltast.authz.protos.revocation_pb2 import Revocation as Message
from peltast.authz.revocations import InvalidRevocation, Revocation, RevocationList

__all__ = ["LIST_METHOD", "NAME", "REVOKE_METHOD", "from_message", "revocation_methods", "to_message"]

NAME = "peltast.authz.v1.Revocations"
REVOKE_METHOD, LIST_METHOD = f"/{NAME}/Revoke", f"/{NAME}/List"

Context = grpc.aio.ServicerContext[Any, Any]


def revocation_methods(revocations: RevocationList) -> dict[str, tuple[Any, type[Any], type[Any]]]:
    """The methods of the gRPC service. Who may call them is settled by who may open the socket."""

    async def revoke(request: Message, context: Context) -> RevokeResponse:
        try:
            revocations.revoke(from_message(request))
        except InvalidRevocation as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except OSError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the revocation could not be kept: {error}")
        return RevokeResponse()

    async def listed(request: ListRequest, context: Context) -> ListResponse:
        return ListResponse(revocations=map(to_message, revocations.revocations))

    return {"Revoke": (revoke, Message, RevokeResponse), "List": (listed, ListRequest, ListResponse)}


def to_message(revocation: Revocation) -> Message:
    """What is absent is 0 or empty in the message: neither is good in a revocation."""
    return Message(
        issuer=revocation.issuer,
        token_id=revocation.token_id or "",
        subject=revocation.subject or "",
        issued_before=revocation.issued_before or 0,
    )


def from_message(message: Message) -> Revocation:
    """Reads what :func:`to_message` gave.

    Raises:
        InvalidRevocation: see there.
    """
    return Revocation(message.issuer, message.token_id or None, message.subject or None, message.issued_before or None)
