"""From a snapshot to what one sidecar is configured with. Pure: the same input gives the same resources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions
from envoy.config.endpoint.v3.endpoint_components_pb2 import Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route as EnvoyRoute
from envoy.config.route.v3.route_components_pb2 import RouteAction, RouteMatch, VirtualHost
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import (
    HttpProtocolOptions as UpstreamHttpProtocolOptions,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue

from peltast.authz.revision import Revision
from peltast.policies.kinds.workload import ServicePort
from peltast.policies.snapshot import Route, Workload
from peltast.proxy.xds import module as dynamic_module
from peltast.proxy.xds import tls
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, Resources, resource

__all__ = ["CHECK_CLUSTER", "Surroundings", "compile_resources"]

CHECK_CLUSTER = "peltast-check"
"""The cluster by which sidecars ask the check service; the module knows it by this name."""

_CONNECT_TIMEOUT = Duration(seconds=5)
_HEADERS_TIMEOUT = Duration(seconds=10)
_UPSTREAM_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True)
class Surroundings:
    """What a sidecar's configuration needs to know beside the snapshot."""

    module: str
    """Name of the module's build on the sidecar's node."""
    check_address: tuple[str, int]
    control_principal: str
    """SPIFFE ID of the control plane, which serves the check service."""


def compile_resources(revision: Revision, workload: Workload, surroundings: Surroundings) -> Resources:
    """Every resource of the sidecar of `workload`."""
    module = surroundings.module
    listeners = [
        *(inbound_listener(workload, port, module) for port in workload.ports),
        *(outbound_listener(workload, route, module) for route in workload.routes),
    ]
    clusters = [
        *(application_cluster(workload, port) for port in workload.ports),
        *(outbound_cluster(route) for route in workload.routes),
        check_cluster(surroundings),
    ]
    configs = [
        dynamic_module.filter_config(module, dynamic_module.PROGRAM, revision.programs[workload.full_name]),
        dynamic_module.filter_config(module, dynamic_module.KEYS, revision.keys[workload.full_name]),
    ]
    by_type: tuple[tuple[str, Sequence[Any]], ...] = (
        (CLUSTER, clusters),
        (LISTENER, listeners),
        (EXTENSION_CONFIG, configs),
    )
    return {type_url: {each.name: resource(each.name, each) for each in messages} for type_url, messages in by_type}


# Listeners ------------------------------------------------------------------------------------------------------------


def inbound_listener(workload: Workload, port: ServicePort, module: str) -> Listener:
    """Takes requests from peers: mutual TLS, then the module, then the application."""
    manager = connection_manager(
        f"inbound_{port.port}",
        application_cluster_name(port),
        [dynamic_module.filter_by_ecds(dynamic_module.KEYS), dynamic_module.filter_by_ecds(dynamic_module.PROGRAM)],
        dynamic_module.access_log(module, "inbound"),
    )
    # Whatever a peer claims in x-forwarded-client-cert is replaced by what it proved.
    manager.forward_client_cert_details = HttpConnectionManager.SANITIZE_SET
    manager.set_current_client_cert_details.uri = True
    chain = FilterChain(
        transport_socket=tls.downstream(),
        transport_socket_connect_timeout=_HEADERS_TIMEOUT,
        filters=[dynamic_module.peer_filter_state(), manager_filter(manager)],
    )
    listener = Listener(
        name=f"inbound_{port.port}",
        address=socket_address(workload.address, port.port),
        listener_filters=[tls.inspector()],
        listener_filters_timeout=_HEADERS_TIMEOUT,
        filter_chains=[chain],
        access_log=[dynamic_module.access_log(module, "listener")],
    )
    return without_reuse_port(listener)


def outbound_listener(workload: Workload, route: Route, module: str) -> Listener:
    """Takes requests from the application, for one service."""
    manager = connection_manager(
        f"outbound_{route.port}",
        outbound_cluster_name(route),
        [],
        dynamic_module.access_log(module, "outbound"),
    )
    listener = Listener(
        name=f"outbound_{route.port}",
        address=socket_address(workload.address, route.port),
        filter_chains=[FilterChain(filters=[manager_filter(manager)])],
    )
    return without_reuse_port(listener)


def without_reuse_port(listener: Listener) -> Listener:
    """With it, a second process could listen on a sidecar's port and take a share of its connections."""
    listener.enable_reuse_port.value = False
    return listener


def connection_manager(name: str, cluster: str, filters: Iterable[HttpFilter], log: Any) -> HttpConnectionManager:
    """A connection manager that sends every request to `cluster`. Paths are normalized as in the engine."""
    router = HttpFilter(name="envoy.filters.http.router")
    router.typed_config.Pack(Router())
    everything = EnvoyRoute(
        match=RouteMatch(prefix="/"), route=RouteAction(cluster=cluster, timeout=Duration(seconds=0))
    )
    return HttpConnectionManager(
        stat_prefix=name,
        route_config=RouteConfiguration(
            name=name, virtual_hosts=[VirtualHost(name="all", domains=["*"], routes=[everything])]
        ),
        http_filters=[*filters, router],
        access_log=[log],
        normalize_path=BoolValue(value=True),
        merge_slashes=True,
        path_with_escaped_slashes_action=HttpConnectionManager.KEEP_UNCHANGED,
        # The peer's own address, and not one that a header claims.
        use_remote_address=BoolValue(value=True),
        preserve_external_request_id=True,
        request_headers_timeout=_HEADERS_TIMEOUT,
        common_http_protocol_options=HttpProtocolOptions(idle_timeout=Duration(seconds=3600)),
        server_header_transformation=HttpConnectionManager.PASS_THROUGH,
    )


def manager_filter(manager: HttpConnectionManager) -> Filter:
    """The connection manager as a network filter."""
    network_filter = Filter(name="envoy.filters.network.http_connection_manager")
    network_filter.typed_config.Pack(manager)
    return network_filter


# Clusters -------------------------------------------------------------------------------------------------------------


def application_cluster_name(port: ServicePort) -> str:
    """The cluster of the application behind `port`."""
    return f"application_{port.target_port}"


def application_cluster(workload: Workload, port: ServicePort) -> Cluster:
    """The application itself, over loopback."""
    addresses = [socket_address(workload.address, port.target_port)]
    return static_cluster(application_cluster_name(port), addresses, port.app_protocol)


def outbound_cluster_name(route: Route) -> str:
    """The cluster of another service, named as Istio names it."""
    return f"outbound|{route.destination_port}||{route.host}"


def outbound_cluster(route: Route) -> Cluster:
    """Another service's sidecars, who must be who they should be."""
    addresses = [socket_address(endpoint.address, route.destination_port) for endpoint in route.endpoints]
    principals = [endpoint.principal for endpoint in route.endpoints]
    return static_cluster(outbound_cluster_name(route), addresses, route.protocol, tls.upstream(principals, route.host))


def check_cluster(surroundings: Surroundings) -> Cluster:
    """The check service."""
    socket = tls.upstream([surroundings.control_principal], "control.peltast.internal")
    return static_cluster(CHECK_CLUSTER, [socket_address(*surroundings.check_address)], "http", socket)


def static_cluster(
    name: str, addresses: Iterable[Address], protocol: str, socket: TransportSocket | None = None
) -> Cluster:
    """A cluster with fixed addresses."""
    endpoints = [LbEndpoint(endpoint=Endpoint(address=address)) for address in addresses]
    cluster = Cluster(
        name=name,
        type=Cluster.STATIC,
        connect_timeout=_CONNECT_TIMEOUT,
        load_assignment=ClusterLoadAssignment(
            cluster_name=name, endpoints=[LocalityLbEndpoints(lb_endpoints=endpoints)]
        ),
        transport_socket=socket,
    )
    cluster.typed_extension_protocol_options[_UPSTREAM_OPTIONS].CopyFrom(upstream_protocol(protocol))
    return cluster


def upstream_protocol(protocol: str) -> AnyMessage:
    """HTTP/1.1 for ``http``, HTTP/2 for ``http2`` and ``grpc``."""
    explicit = UpstreamHttpProtocolOptions.ExplicitHttpConfig()
    if protocol == "http":
        explicit.http_protocol_options.CopyFrom(Http1ProtocolOptions())
    else:
        explicit.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    options = AnyMessage()
    options.Pack(UpstreamHttpProtocolOptions(explicit_http_config=explicit))
    return options


def socket_address(address: str, port: int) -> Address:
    """An IP address and a port."""
    return Address(socket_address=SocketAddress(address=address, port_value=port))
