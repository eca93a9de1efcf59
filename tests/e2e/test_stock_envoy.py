"""A stock Envoy in front of an application, with nothing of ours but `ext_authz` that asks the check service."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import support.running
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from support.check_service import CLIENT_ID, CONTROL_ID, SERVER_ID, asks, check_service, grpc_channel
from support.http import Connection, Response
from support.peer import context, svid_for
from support.running import ALLOW, APPLICATION_PORT, BASE_PORT, SERVER, command_line, descendants

from peltast.cli.readiness import envoy_is_ready, takes_connections, wait_until
from peltast.identity.acts import Act
from peltast.identity.svid import save_svid
from peltast.proxy.sidecar.binary import find_envoy
from peltast.proxy.sidecar.supervise import dying_with_parent

ECHO = Path(support.running.__file__).with_name("echo.py")
ADDRESS = "127.0.20.9"
GRPC, HTTP = 9001, 9002

# Path and header decide, so that both forms can tell; who calls, only one of them can.
TIERS = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tiers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules: [{to: [{operation: {paths: ["/tiers/*"]}}]}]
"""
POLICIES = TIERS + asks("/tiers/*", 'input.attributes.request.http.headers["x-card"] == "gold"')


def tls(folder: Path, state: Path, kind: str, **more: Any) -> dict[str, Any]:
    """Mutual TLS 1.3 with the server's SVID."""
    svid = {"filename": str(folder / "svid.pem")}
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": svid, "private_key": svid}],
        "validation_context": {
            "trusted_ca": {"filename": str(state / "ca" / "root.pem")},
            **more.pop("validation", {}),
        },
    }
    of_kind = {"@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}", **more}
    return {"name": "tls", "typed_config": {**of_kind, "common_tls_context": common}}


def cluster(name: str, address: str, port: int, **more: Any) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
    return {
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **more,
    }


def listener(port: int, asks: dict[str, Any], transport: dict[str, Any]) -> dict[str, Any]:
    filters = "type.googleapis.com/envoy.extensions.filters"
    authz = {"@type": f"{filters}.http.ext_authz.v3.ExtAuthz", "transport_api_version": "V3", **asks}
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": str(port),
        "http_filters": [
            {"name": "envoy.filters.http.ext_authz", "typed_config": authz},
            {"name": "router", "typed_config": {"@type": f"{filters}.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "application"}}],
                }
            ]
        },
    }
    chain = {"transport_socket": transport, "filters": [{"name": "http", "typed_config": manager}]}
    address = {"socket_address": {"address": ADDRESS, "port_value": port}}
    return {"name": str(port), "address": address, "filter_chains": [chain]}


def bootstrap(folder: Path, state: Path) -> dict[str, Any]:
    pinned = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": CONTROL_ID}}]}
    upstream = tls(folder, state, "UpstreamTlsContext", validation=pinned, sni="control.peltast.internal")
    downstream = tls(folder, state, "DownstreamTlsContext", require_client_certificate=True)
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
    over_grpc = {"grpc_service": {"envoy_grpc": {"cluster_name": "check-grpc"}, "timeout": "2s"}}
    over_http = {
        "http_service": {
            "server_uri": {"uri": "https://control.peltast.internal", "cluster": "check-http", "timeout": "2s"},
            "path_prefix": "/ext_authz",
            "authorization_request": {"headers_to_add": [{"key": "x-peltast-allowed-headers", "value": "x-card"}]},
            "authorization_response": {
                "allowed_upstream_headers": {"patterns": [{"exact": "x-tier"}]},
                "allowed_client_headers": {"patterns": [{"exact": "x-price"}]},
                "allowed_client_headers_on_success": {"patterns": [{"exact": "x-answered"}]},
            },
        },
        "allowed_headers": {"patterns": [{"exact": "x-card"}]},
    }
    return {
        "node": {"id": "stock", "cluster": "stock"},
        "admin": {"address": {"pipe": {"path": str(folder / "admin.sock")}}},
        "static_resources": {
            "listeners": [listener(GRPC, over_grpc, downstream), listener(HTTP, over_http, downstream)],
            "clusters": [
                cluster("application", SERVER, APPLICATION_PORT),
                cluster(
                    "check-grpc",
                    "127.0.0.1",
                    BASE_PORT + 1,
                    transport_socket=upstream,
                    typed_extension_protocol_options=http2,
                ),
                cluster("check-http", "127.0.0.1", BASE_PORT + 3, transport_socket=upstream),
            ],
        },
    }


@contextlib.asynccontextmanager
async def stock_envoy(folder: Path, state: Path) -> AsyncIterator[None]:
    save_svid(folder, svid_for(state, SERVER_ID))
    config, log = folder / "bootstrap.json", folder / "envoy.log"
    config.write_text(json.dumps(bootstrap(folder, state)))
    command = [str(find_envoy().path), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
    with log.open("wb") as output:
        process = subprocess.Popen(dying_with_parent(command), stdout=output, stderr=output)
    try:
        await wait_until(lambda: envoy_is_ready(folder / "admin.sock"), lambda: log.read_text()[-4000:])
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def application(seen: Path) -> AsyncIterator[None]:
    environment = {**os.environ, "LISTEN": f"{SERVER}:{APPLICATION_PORT}", "SEEN": str(seen)}
    process = subprocess.Popen(dying_with_parent([sys.executable, str(ECHO)]), env=environment)
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def test_a_stock_envoy_asks_in_both_forms(folder: Path, state: Path, seen: Path, tmp_path: Path) -> None:
    (folder / "policies.yaml").write_text(ALLOW + POLICIES)
    acts: list[Act] = []
    async with application(seen), check_service(folder, state, acts.append), stock_envoy(tmp_path / "stock", state):
        await wait_until(lambda: takes_connections(SERVER, APPLICATION_PORT), lambda: "no application")
        peer = context(tmp_path / "peer", svid_for(state, CLIENT_ID))

        async def get(port: int, path: str, **headers: str) -> Response:
            connection = await Connection.open(ADDRESS, port, peer)
            try:
                return await connection.ask("GET", path, headers)
            finally:
                connection.close()

        for port in (GRPC, HTTP):
            allowed = await get(port, "/tiers/1", **{"x-card": "gold", "x-secret": "s", "x-tier": "forged"})
            assert (allowed.status, allowed.headers["x-answered"]) == (200, "yes"), port
            seen = allowed.json()["headers"]
            assert (seen["x-tier"], "x-secret" in seen) == ("gold", False), port
            denied = await get(port, "/tiers/1")
            assert (denied.status, denied.body, denied.headers["x-price"]) == (402, b"pay", "1"), port
        # Who calls is known in the one form and unknown in the other, where no ALLOW holds by it.
        assert (await get(GRPC, "/open")).status == 200
        assert (await get(HTTP, "/open")).status == 403
        assert (await get(GRPC, "/shut")).status == 403
        processes = [command_line(pid) for pid in descendants(os.getpid())]
        assert sum("peltast.cli.check_worker" in line for line in processes) == 2
        assert sum("peltast.authz.check.evaluator" in line for line in processes) == 4
        await health_and_reflection(state)
        assert acts == [], "nothing was refused"


async def health_and_reflection(state: Path) -> None:
    async with grpc_channel(state) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        name = "envoy.service.auth.v3.Authorization"
        assert (await check(HealthCheckRequest(service=name))).status == HealthCheckResponse.SERVING
        reflect = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )
        call = reflect(iter([ServerReflectionRequest(list_services="*")]))
        answer = await call.read()
        assert answer is not grpc.aio.EOF
        assert name in {service.name for service in answer.list_services_response.service}
