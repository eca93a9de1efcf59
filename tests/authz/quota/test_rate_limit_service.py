from __future__ import annotations

import pytest
from envoy.extensions.common.ratelimit.v3.ratelimit_pb2 import RateLimitDescriptor
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf.json_format import MessageToDict, ParseDict

from peltast.authz.quota.counters import MemoryCounters
from peltast.authz.quota.descriptors import load_limits
from peltast.authz.quota.rate_limit_service import InvalidRequest, RateLimitService

LIMITS = b"""\
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: minute, requests_per_unit: 2, name: each}
  - key: all
    rate_limit: {unit: hour, requests_per_unit: 5}
  - key: tried
    shadow_mode: true
    rate_limit: {unit: day, requests_per_unit: 1}
  - key: free
    rate_limit: {unlimited: true, replaces: [{name: each}]}
"""
NOW = 1_795_000_030.5


def service(clock: float = NOW) -> RateLimitService:
    answering = RateLimitService(MemoryCounters(lambda: int(clock * 1e9)), lambda: clock)
    answering.take(load_limits({"shop.yaml": LIMITS}))
    return answering


def request(*keys: str, hits: int = 0, domain: str = "shop", value: str = "x", **more: object) -> RateLimitRequest:
    descriptors = [{"entries": [{"key": key, "value": value}], **more} for key in keys]
    return ParseDict({"domain": domain, "descriptors": descriptors, "hitsAddend": hits}, RateLimitRequest())


def told(response: RateLimitResponse) -> tuple[str, list[tuple[str, int]], dict[str, str]]:
    statuses = [(RateLimitResponse.Code.Name(each.code), each.limit_remaining) for each in response.statuses]
    headers = {header.key: header.value for header in response.response_headers_to_add}
    return RateLimitResponse.Code.Name(response.overall_code), statuses, headers


async def test_hits_are_counted_by_descriptor_until_the_limit_is_exceeded() -> None:
    answering = service()
    answers = [told(await answering.answer(request("user", "all"))) for _ in range(3)]
    assert answers == [
        ("OK", [("OK", 1), ("OK", 4)], headers(2, 1, 50)),
        ("OK", [("OK", 0), ("OK", 3)], headers(2, 0, 50)),
        ("OVER_LIMIT", [("OVER_LIMIT", 0), ("OK", 2)], headers(2, 0, 50)),
    ]
    assert told(await answering.answer(request("user", value="other")))[1] == [("OK", 1)], "another value"


def headers(limit: int, remaining: int, reset: int) -> dict[str, str]:
    given = {"RateLimit-Limit": limit, "RateLimit-Remaining": remaining, "RateLimit-Reset": reset}
    return {name: str(value) for name, value in given.items()}


async def test_a_status_tells_limit_and_reset() -> None:
    response = await service().answer(request("user"))
    assert MessageToDict(response.statuses[0]) == {
        "code": "OK",
        "currentLimit": {"name": "each", "requestsPerUnit": 2, "unit": "MINUTE"},
        "limitRemaining": 1,
        "durationUntilReset": "50s",
    }


async def test_the_next_window_counts_anew() -> None:
    clock = NOW
    answering = RateLimitService(MemoryCounters(lambda: int(clock * 1e9)), lambda: clock)
    answering.take(load_limits({"shop.yaml": LIMITS}))
    assert told(await answering.answer(request("user", hits=3)))[0] == "OVER_LIMIT"
    clock += 49.4
    assert told(await answering.answer(request("user", hits=2)))[0] == "OVER_LIMIT"
    clock += 0.1
    assert told(await answering.answer(request("user", hits=2)))[0] == "OK"


@pytest.mark.parametrize(
    ("asked", "overall", "statuses"),
    [
        (request("tried", hits=9), "OK", [("OK", 0)]),
        (request("free", hits=9), "OK", [("OK", 2**32 - 1)]),
        (request("user", "free", hits=9), "OK", [("OK", 0), ("OK", 2**32 - 1)]),
        (request("unknown", hits=9), "OK", [("OK", 0)]),
        (request("user", domain="elsewhere", hits=9), "OK", [("OK", 0)]),
        (request("user", hits=2), "OK", [("OK", 0)]),
        (request("user", hits=3), "OVER_LIMIT", [("OVER_LIMIT", 0)]),
        (request("user", hits=3, hitsAddend=1), "OK", [("OK", 1)]),
        (request("user", hits=3, hitsAddend=0), "OK", [("OK", 2)]),
        (request("user", limit={"requestsPerUnit": 7, "unit": "YEAR"}), "OK", [("OK", 6)]),
        (request("user", domain="elsewhere", limit={"requestsPerUnit": 7, "unit": "YEAR"}), "OK", [("OK", 0)]),
        (request("all", "all", hits=3), "OVER_LIMIT", [("OK", 2), ("OVER_LIMIT", 0)]),
    ],
    ids=[
        "shadow mode",
        "unlimited",
        "replaced",
        "no such descriptor",
        "no such domain",
        "hits up to the limit",
        "hits beyond the limit",
        "hits of a descriptor",
        "a look without a hit",
        "a limit in the request",
        "a limit in the request of an unknown domain",
        "one descriptor twice",
    ],
)
async def test_one_request(asked: RateLimitRequest, overall: str, statuses: list[tuple[str, int]]) -> None:
    assert told(await service().answer(asked))[:2] == (overall, statuses)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (request("user", domain=""), "domain: nothing is given"),
        (request(), "descriptors: 0 is given; 1 to 64 are allowed"),
        (request(*["user"] * 65), "descriptors: 65 is given"),
        (
            RateLimitRequest(domain="shop", descriptors=[RateLimitDescriptor(entries=[{"key": "a"}] * 33)]),
            "entries: 33",
        ),
        (request("user", hitsAddend=2**32), "hits_addend: 4294967296 is given"),
        (request("user", limit={"requestsPerUnit": 7}), "limit.unit: 0 is given; allowed are SECOND"),
    ],
)
async def test_a_request_that_cannot_be_answered_says_why(asked: RateLimitRequest, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        await service().answer(asked)
