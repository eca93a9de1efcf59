"""`ext_authz` v3 over gRPC: any Envoy with an SVID may ask about requests to itself.

Beside it the standard services for health (https://github.com/grpc/grpc/blob/master/doc/health-checking.md) and
reflection, for operators' tools.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from peltast.authz.check.front import CheckFront
from peltast.authz.check.service import NotYours, UnknownDestination

__all__ = ["NAME", "authorization_methods", "serve_health"]

NAME = "envoy.service.auth.v3.Authorization"

Context = grpc.aio.ServicerContext[Any, Any]


def authorization_methods(
    front: CheckFront, caller: Callable[[Context], object]
) -> dict[str, tuple[Any, type[_Question], type[CheckResponse]]]:
    """The methods of the gRPC service; `caller` tells the SPIFFE ID of whoever calls, or raises ValueError."""

    async def check(question: _Question, context: Context) -> CheckResponse:
        try:
            checked = front.check(question, str(caller(context)))
            return checked if isinstance(checked, CheckResponse) else await checked
        except NotYours as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except UnknownDestination as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError("abort does not return")

    return {"Check": (check, _Question, CheckResponse)}


class _Question(bytes):
    """A CheckRequest as it comes: the engine reads it, and says what is wrong with it."""

    @classmethod
    def FromString(cls, message: bytes) -> _Question:  # noqa: N802 - as protobuf calls it
        return cls(message)


async def serve_health(server: grpc.aio.Server) -> aio.HealthServicer:
    """Adds health and reflection to `server`, which serves until :meth:`enter_graceful_shutdown`."""
    health = aio.HealthServicer()
    for service in ("", NAME):
        await health.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection((NAME, HEALTH, reflection.SERVICE_NAME), server)
    return health
