"""Rate Limit Service v3 by two: ours, and the real envoyproxy/ratelimit. The same requests, the same answers.

Both count in one Redis, under keys of their own. A window may end between the two answers to one request; so the
requests to a domain are asked within one second, or all over again.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import redis.asyncio
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf.json_format import MessageToDict, ParseDict
from support import ratelimit
from support.receivers import free_port
from support.redis import needs_redis, redis_server

from peltast.authz.quota.descriptors import load_limits
from peltast.authz.quota.grpc import RATE_LIMITS, rate_limit_methods
from peltast.authz.quota.rate_limit_service import RateLimitService
from peltast.authz.quota.redis_counters import RedisCounters
from peltast.identity.rpc import generic_handler

SOAK = os.environ.get("PELTAST_EXAMPLES") == "other"
SEED = random.SystemRandom().getrandbits(32) if SOAK else 20261122
DOMAINS = 600 if SOAK else 120
REQUESTS = 25

Answer = dict[str, Any]


@needs_redis
@ratelimit.needs_ratelimit
async def test_the_same_requests_get_the_same_answers(tmp_path: Path) -> None:
    choose = random.Random(SEED)
    names = [f"domain{number}" for number in range(DOMAINS)]
    domains = {name: ratelimit.domain(choose, name) for name in names}
    files = {f"{name}.yaml": ratelimit.to_yaml(domain) for name, domain in domains.items()}
    seen: Counter[str] = Counter()
    with redis_server(tmp_path) as port, ratelimit.running(tmp_path, files, port) as original:
        async with (
            RedisCounters.connect(f"redis://127.0.0.1:{port}", cluster=False) as counters,
            served(counters, files) as address,
            redis.asyncio.Redis(port=port) as client,
            grpc.aio.insecure_channel(f"127.0.0.1:{original}") as theirs,
            grpc.aio.insecure_channel(address) as ours,
        ):
            for name in names:
                requests = [ratelimit.request(choose, domains[name]) for _ in range(REQUESTS)]
                both = await within_a_second(client, [theirs, ours], requests)
                for asked, (their_answer, our_answer) in zip(requests, both, strict=True):
                    assert our_answer == their_answer, (files[f"{name}.yaml"], asked)
                    seen += kinds(their_answer)
    print(f"{DOMAINS * REQUESTS} requests to {DOMAINS} domains: {dict(seen)}")
    assert min(seen[kind] for kind in WANTED) >= DOMAINS // 4, seen


WANTED = ["OK", "OVER_LIMIT", "status OK", "status OVER_LIMIT", "unlimited", "no limit", "unit WEEK", "unit YEAR"]


@asynccontextmanager
async def served(counters: RedisCounters, files: dict[str, str]) -> AsyncIterator[str]:
    service = RateLimitService(counters)
    service.take(load_limits({name: text.encode() for name, text in files.items()}))
    server = grpc.aio.server()
    methods = rate_limit_methods(service, lambda _: "anyone")
    server.add_generic_rpc_handlers((generic_handler(RATE_LIMITS, methods),))
    address = f"127.0.0.1:{free_port()}"
    server.add_insecure_port(address)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(grace=None)


async def within_a_second(
    client: redis.asyncio.Redis, channels: list[grpc.aio.Channel], requests: list[dict[str, Any]]
) -> list[list[Answer]]:
    deadline = time.monotonic() + 60
    while True:
        await client.flushall()
        began = int(time.time())
        answers = [[await ask(channel, request) for channel in channels] for request in requests]
        if int(time.time()) == began:
            return answers
        assert time.monotonic() < deadline, "no second was long enough"


async def ask(channel: grpc.aio.Channel, request: dict[str, Any]) -> Answer:
    call = channel.unary_unary(
        f"/{RATE_LIMITS}/ShouldRateLimit",
        request_serializer=RateLimitRequest.SerializeToString,
        response_deserializer=RateLimitResponse.FromString,
    )
    answer: dict[str, Any] = MessageToDict(await call(ParseDict(request, RateLimitRequest()), timeout=5))
    return answer


def kinds(answer: Answer) -> Counter[str]:
    """What an answer has, for the test to see that it compares more than one thing."""
    found = Counter([answer["overallCode"]])
    for status in answer["statuses"]:
        found[f"status {status['code']}"] += 1
        found["unlimited"] += status.get("limitRemaining") == 2**32 - 1
        found["no limit"] += "currentLimit" not in status
        found[f"unit {status.get('currentLimit', {}).get('unit')}"] += 1
    return found
