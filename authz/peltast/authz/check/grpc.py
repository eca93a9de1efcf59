"""`ext_authz` v3 over gRPC: any Envoy with an SVID may ask about requests to itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from peltast.authz.check.service import CheckService, NotYours, UnknownDestination

__all__ = ["authorization_methods"]

NAME = "envoy.service.auth.v3.Authorization"

Context = grpc.aio.ServicerContext[Any, Any]


def authorization_methods(
    service: CheckService, caller: Callable[[Context], object]
) -> dict[str, tuple[Any, type[CheckRequest], type[CheckResponse]]]:
    """The methods of the gRPC service; `caller` tells the SPIFFE ID of whoever calls, or raises ValueError."""

    async def check(request: CheckRequest, context: Context) -> CheckResponse:
        try:
            return service.check(request, str(caller(context)))
        except NotYours as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except UnknownDestination as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError("abort does not return")

    return {"Check": (check, CheckRequest, CheckResponse)}
