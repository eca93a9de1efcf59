"""A stock Envoy, with nothing of ours, whose rate limit filter asks `peltast quota serve`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.http.ratelimit.v3.rate_limit_pb2 import RateLimit
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from support.envoys import Envoys
from support.http import Connection, Response
from support.quota import served
from support.running import eventually

from peltast.cli.settings import sockets_folder

ADDRESS, PORT, APPLICATION_PORT = "127.0.20.11", 8080, 8081

LIMITS = """\
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: year, requests_per_unit: @LIMIT@}
"""

WELCOME = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "welcome"}}}
TO_APPLICATION = {"match": {"prefix": "/"}, "route": {"cluster": "application"}}
USER = {"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}


def packed(message: Message) -> Any:
    """As `Any` of protobuf: one whose type need not be named."""
    any_of = AnyMessage()
    any_of.Pack(message)
    return MessageToDict(any_of)


def listener(name: str, port: int, route: dict[str, Any], filters: Sequence[dict[str, Any]] = ()) -> Listener:
    hosts = [{"name": "all", "domains": ["*"], "routes": [route], "rate_limits": [USER]}]
    router = {"name": "router", "typed_config": packed(Router())}
    manager = {
        "stat_prefix": name,
        "http_filters": [*filters, router],
        "route_config": {"virtual_hosts": hosts},
    }
    network = {"name": "http", "typed_config": packed(ParseDict(manager, HttpConnectionManager()))}
    address = {"socket_address": {"address": ADDRESS, "port_value": port}}
    return ParseDict({"name": name, "address": address, "filter_chains": [{"filters": [network]}]}, Listener())


def limited() -> Listener:
    service = {"grpc_service": {"envoy_grpc": {"cluster_name": "quota"}}, "transport_api_version": "V3"}
    limits = {
        "domain": "shop",
        "failure_mode_deny": True,
        "timeout": "5s",
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
        "rate_limit_service": service,
    }
    asks = {"name": "envoy.filters.http.ratelimit", "typed_config": packed(ParseDict(limits, RateLimit()))}
    return listener("limited", PORT, TO_APPLICATION, [asks])


def cluster(name: str, address: dict[str, Any], **options: Any) -> Cluster:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    assignment = {"cluster_name": name, "endpoints": endpoints}
    return ParseDict({"name": name, "load_assignment": assignment, **options}, Cluster())


def clusters(quota: Path) -> list[Cluster]:
    http2 = ParseDict({"explicit_http_config": {"http2_protocol_options": {}}}, HttpProtocolOptions())
    options = {HttpProtocolOptions.DESCRIPTOR.full_name: packed(http2)}
    return [
        cluster("application", {"socket_address": {"address": ADDRESS, "port_value": APPLICATION_PORT}}),
        cluster("quota", {"pipe": {"path": str(quota)}}, typed_extension_protocol_options=options),
    ]


async def get(user: str) -> Response:
    connection = await Connection.open(ADDRESS, PORT)
    try:
        return await connection.ask("GET", "/", {"x-user": user})
    finally:
        connection.close()


async def statuses(user: str, number: int) -> list[int]:
    return [(await get(user)).status for _ in range(number)]


def test_a_stock_envoy_asks_the_quota_service(tmp_path: Path) -> None:
    state = tmp_path / "state"
    listeners = [limited(), listener("application", APPLICATION_PORT, WELCOME)]
    with Envoys(tmp_path).running("stock", listeners, clusters(sockets_folder(state) / "quota.sock")):
        asyncio.run(ask_the_quota_service(tmp_path, state))


async def ask_the_quota_service(tmp_path: Path, state: Path) -> None:
    assert await statuses("jo", 2) == [500, 500], "nobody counts, and failures are denied"
    limits = tmp_path / "limits"
    limits.mkdir()
    (limits / "shop.yaml").write_text(LIMITS.replace("@LIMIT@", "3"))
    async with served(limits, "--state", state) as said:
        await eventually_allowed("jo")
        first = await get("mo")
        assert (first.status, first.body, first.headers["x-ratelimit-remaining"]) == (200, b"welcome", "2")
        assert await statuses("mo", 4) == [200, 200, 429, 429]
        assert (await get("mo")).headers["x-ratelimit-limit"].startswith("3, 3;w=")

        (limits / "shop.yaml").write_text(LIMITS.replace("@LIMIT@", "1000"))
        await eventually(lambda: any("descriptors taken" in line for line in said), "the new limit is taken")
        assert await statuses("mo", 2) == [200, 200]
        (limits / "shop.yaml").write_text(LIMITS.replace("@LIMIT@", "-1"))
        await eventually(lambda: any("descriptors refused" in line for line in said), "the bad one is refused")
        assert await statuses("mo", 2) == [200, 200], "the last good one stays"


async def eventually_allowed(user: str) -> None:
    """Envoy tries a connection that failed again after a while."""
    deadline = time.monotonic() + 20
    while (await get(user)).status != 200:
        assert time.monotonic() < deadline, "the quota service is never asked"
