"""Quotas over gRPC: Rate Limit Service v3, and leases."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse

from peltast.authz.protos.quota_pb2 import BorrowManyRequest, BorrowManyResponse, BorrowRequest, BorrowResponse
from peltast.authz.quota.counters import CountersAway
from peltast.authz.quota.lease_service import LeaseService, NoLimit
from peltast.authz.quota.policy_leases import PolicyLeases
from peltast.authz.quota.rate_limit_service import InvalidRequest, RateLimitService

__all__ = ["LEASES", "RATE_LIMITS", "lease_methods", "policy_lease_methods", "rate_limit_methods"]

RATE_LIMITS = "envoy.service.ratelimit.v3.RateLimitService"
LEASES = "peltast.authz.v1.Quotas"

Context = grpc.aio.ServicerContext[Any, Any]
Methods = dict[str, tuple[Any, type[Any], type[Any]]]
Answer = TypeVar("Answer")


def rate_limit_methods(service: RateLimitService, caller: Callable[[Context], object]) -> Methods:
    """The methods of the rate limit service; `caller` names whoever calls, or raises ValueError."""

    async def should_rate_limit(request: RateLimitRequest, context: Context) -> RateLimitResponse:
        async def answer() -> RateLimitResponse:
            caller(context)
            return await service.answer(request)

        return await _answered(answer(), context)

    return {"ShouldRateLimit": (should_rate_limit, RateLimitRequest, RateLimitResponse)}


def lease_methods(service: LeaseService, caller: Callable[[Context], object]) -> Methods:
    """The methods of the leases; a lease is its caller's."""

    async def borrow(request: BorrowRequest, context: Context) -> BorrowResponse:
        async def answer() -> BorrowResponse:
            return await service.borrow(request, str(caller(context)))

        return await _answered(answer(), context)

    return {"Borrow": (borrow, BorrowRequest, BorrowResponse)}


def policy_lease_methods(service: PolicyLeases, caller: Callable[[Context], object]) -> Methods:
    """The methods of the leases of RateLimitPolicies; a lease is its caller's."""

    async def borrow_many(request: BorrowManyRequest, context: Context) -> BorrowManyResponse:
        async def answer() -> BorrowManyResponse:
            return await service.borrow(request, str(caller(context)))

        return await _answered(answer(), context)

    return {"BorrowMany": (borrow_many, BorrowManyRequest, BorrowManyResponse)}


async def _answered(answer: Awaitable[Answer], context: Context) -> Answer:
    try:
        return await answer
    except InvalidRequest as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except NoLimit as error:
        await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
    except CountersAway as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    except ValueError as error:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
    raise AssertionError("abort does not return")
