"""`ext_authz` v3 over gRPC: any Envoy with an SVID may ask about requests to itself.

Beside it the standard services for health (https://github.com/grpc/grpc/blob/master/doc/health-checking.md) and
reflection, for operators' tools.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from peltast.authz.check.front import CheckFront
from peltast.authz.check.service import NotYours, UnknownDestination

__all__ = ["MAX_QUESTION_BYTES", "NAME", "TOO_LONG", "authorization_handler", "serve_health"]

MAX_QUESTION_BYTES = 1024 * 1024
"""Envoy bounds a request's headers to far less."""

TOO_LONG = f"a CheckRequest has at most {MAX_QUESTION_BYTES} bytes"

NAME = "envoy.service.auth.v3.Authorization"

Context = grpc.aio.ServicerContext[Any, Any]


def authorization_handler(
    front: CheckFront, caller: Callable[[Context], object]
) -> grpc.GenericRpcHandler[Any, CheckResponse]:
    """The gRPC service; `caller` tells the SPIFFE ID of whoever calls, or raises ValueError."""

    async def check(questions: AsyncIterator[bytes], context: Context) -> CheckResponse:
        try:
            who = str(caller(context))
            question = await anext(questions, None)
            if question is None:
                # gRPC has told the caller already; it has not told us more than that.
                front.counts.refuse(who, TOO_LONG)
                raise ValueError(TOO_LONG)
            checked = front.check(question, who)
            return checked if isinstance(checked, CheckResponse) else await checked
        except NotYours as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except UnknownDestination as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError("abort does not return")

    # Read as a stream of one message (the same on the wire): so one that gRPC refuses does not pass unseen.
    handler = grpc.stream_unary_rpc_method_handler(check, response_serializer=CheckResponse.SerializeToString)
    return grpc.method_handlers_generic_handler(NAME, {"Check": handler})


async def serve_health(server: grpc.aio.Server) -> aio.HealthServicer:
    """Adds health and reflection to `server`, which serves until :meth:`enter_graceful_shutdown`."""
    health = aio.HealthServicer()
    for service in ("", NAME):
        await health.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((NAME, HEALTH, reflection.SERVICE_NAME), server)
    return health
