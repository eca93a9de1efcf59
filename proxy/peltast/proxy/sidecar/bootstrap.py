"""The bootstrap of a sidecar's Envoy: everything else comes from its agent, over one socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peltast.proxy.xds.tls import AGENT_CLUSTER

__all__ = ["bootstrap"]

MAX_CONNECTIONS = 50_000


def bootstrap(workload: str, agent_socket: Path, admin_socket: Path) -> str:
    """Envoy's bootstrap, in JSON."""
    agent = {"envoy_grpc": {"cluster_name": AGENT_CLUSTER}}
    ads: dict[str, Any] = {"ads": {}, "resource_api_version": "V3"}
    config = {
        "node": {"id": workload, "cluster": "peltast"},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [agent],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [_pipe_cluster(AGENT_CLUSTER, agent_socket)]},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors"
                        ".downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }
    return json.dumps(config)


def _pipe_cluster(name: str, socket: Path) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
