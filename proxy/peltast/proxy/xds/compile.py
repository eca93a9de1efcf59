"""From a snapshot to what one sidecar is configured with. Pure: the same input gives the same resources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
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
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import (
    HttpProtocolOptions as UpstreamHttpProtocolOptions,
)
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from peltast.authz.revision import Revision
from peltast.policies.kinds.audit import Record, Treatment
from peltast.policies.kinds.mesh import Normalization
from peltast.policies.kinds.rate_limit import RateLimitPolicySpec
from peltast.policies.kinds.workload import TCP, ServicePort
from peltast.policies.snapshot import Route, Workload
from peltast.proxy.xds import module as dynamic_module
from peltast.proxy.xds import tls
from peltast.proxy.xds.peers import speak_plaintext, take_peers
from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, Resources, resource

__all__ = ["CHECK_CLUSTER", "QUOTA_CLUSTER", "Surroundings", "compile_resources"]

CHECK_CLUSTER = "peltast-check"
"""The cluster by which sidecars ask the check service; the module knows it by this name."""

QUOTA_CLUSTER = "peltast-quota"
"""The cluster by which sidecars borrow tokens; the module knows it by this name."""

_CONNECT_TIMEOUT = Duration(seconds=5)
_HEADERS_TIMEOUT = Duration(seconds=10)
# How long the end of a stream that is no longer allowed takes on each of its two hops over HTTP/1.1. Envoy's default, a
# second, would make two.
_DELAYED_CLOSE = Duration(nanos=500_000_000)
_UPSTREAM_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True)
class Surroundings:
    """What a sidecar's configuration needs to know beside the snapshot."""

    module: str
    """Name of the module's build on the sidecar's node."""
    check_address: tuple[str, int]
    quota_address: tuple[str, int]
    control_principal: str
    """SPIFFE ID of the control plane, which serves the check service and lends tokens."""


def compile_resources(revision: Revision, workload: Workload, surroundings: Surroundings) -> Resources:
    """Every resource of the sidecar of `workload`."""
    module, normalization = surroundings.module, revision.snapshot.mesh.normalization
    listeners = [
        *(inbound_listener(workload, port, module, normalization) for port in workload.ports),
        *(outbound_listener(workload, route, module, normalization) for route in workload.routes),
    ]
    clusters = [
        *(application_cluster(workload, port) for port in workload.ports),
        *(outbound_cluster(route) for route in workload.routes),
        check_cluster(surroundings),
        *([quota_cluster(surroundings)] if borrows(revision, workload) else []),
    ]
    by_type: tuple[tuple[str, Sequence[Any]], ...] = (
        (CLUSTER, clusters),
        (LISTENER, listeners),
        (EXTENSION_CONFIG, extension_configs(revision, workload, module)),
    )
    return {type_url: {each.name: resource(each.name, each) for each in messages} for type_url, messages in by_type}


def extension_configs(revision: Revision, workload: Workload, module: str) -> list[TypedExtensionConfig]:
    """What the filters of the workload's own listeners ask for, and nothing else."""
    of_tcp = {port.app_protocol == TCP for port in workload.ports}
    program = revision.programs[workload.full_name]
    configs = []
    if False in of_tcp:
        # Keys before the program that asks for them: what runs is decided again as soon as either is there.
        configs += [
            dynamic_module.filter_config(module, dynamic_module.KEYS, revision.keys[workload.full_name]),
            dynamic_module.filter_config(module, dynamic_module.REVOCATIONS, revision.revocations),
            dynamic_module.filter_config(module, dynamic_module.PROGRAM, program),
        ]
    if True in of_tcp:
        configs.append(dynamic_module.network_filter_config(module, program))
    return configs


# Listeners ------------------------------------------------------------------------------------------------------------


def inbound_listener(workload: Workload, port: ServicePort, module: str, normalization: Normalization) -> Listener:
    """Takes requests, or connections that carry none, from peers as the port's mTLS mode says; then asks the module."""
    is_tcp = port.app_protocol == TCP
    listener = Listener(
        name=f"inbound_{port.port}",
        address=socket_address(workload.address, port.port),
    )
    filters = connection_filters(port) if is_tcp else [manager_filter(inbound_manager(port, module, normalization))]
    take_peers(listener, workload.mtls[port.port], filters)
    if is_tcp:
        listener.access_log.append(dynamic_module.access_log(module, "inbound-connection"))
    elif workload.takes_mtls(port.port):  # else there is nothing that it would refuse before a request
        listener.access_log.append(dynamic_module.access_log(module, "listener"))
    return without_reuse_port(listener)


def connection_filters(port: ServicePort) -> list[Filter]:
    """The module, then the application.

    The module stops a new connection until it is allowed, so that the proxy behind it connects to nothing before. That
    proxy would keep the connection from being read until it has connected, and so the handshake from being made, but
    for `max_early_data_bytes`.
    """
    proxy = TcpProxy(
        stat_prefix=f"inbound_{port.port}",
        cluster=application_cluster_name(port),
        max_early_data_bytes=UInt32Value(value=0),
    )
    return [dynamic_module.network_filter_by_ecds(), proxy_filter(proxy)]


def inbound_manager(port: ServicePort, module: str, normalization: Normalization) -> HttpConnectionManager:
    """The connection manager for requests from peers."""
    manager = connection_manager(
        f"inbound_{port.port}",
        application_cluster_name(port),
        [
            dynamic_module.filter_by_ecds(name)
            for name in (dynamic_module.KEYS, dynamic_module.REVOCATIONS, dynamic_module.PROGRAM)
        ],
        dynamic_module.access_log(module, "inbound"),
        normalization,
    )
    # Whatever a peer claims in x-forwarded-client-cert is replaced by what it proved.
    manager.forward_client_cert_details = HttpConnectionManager.SANITIZE_SET
    manager.set_current_client_cert_details.uri = True
    return manager


def outbound_listener(workload: Workload, route: Route, module: str, normalization: Normalization) -> Listener:
    """Takes requests, or connections that carry none, from the application, for one service."""
    name, cluster = f"outbound_{route.port}", outbound_cluster_name(route)
    if route.protocol == TCP:
        log = dynamic_module.access_log(module, "outbound-connection")
        terminal = proxy_filter(TcpProxy(stat_prefix=name, cluster=cluster, access_log=[log]))
    else:
        log = dynamic_module.access_log(module, "outbound", outbound_recording(workload.record))
        terminal = manager_filter(connection_manager(name, cluster, [], log, normalization))
    listener = Listener(
        name=name,
        address=socket_address(workload.address, route.port),
        filter_chains=[FilterChain(filters=[terminal])],
    )
    return without_reuse_port(listener)


def outbound_recording(record: Record) -> str:
    """How the logger of outbound requests is to record queries, but for its default; it has no program to tell it."""
    return record.query.value if record.query not in (None, Treatment.KEEP) else ""


def without_reuse_port(listener: Listener) -> Listener:
    """With it, a second process could listen on a sidecar's port and take a share of its connections."""
    listener.enable_reuse_port.value = False
    return listener


def connection_manager(
    name: str, cluster: str, filters: Iterable[HttpFilter], log: Any, normalization: Normalization
) -> HttpConnectionManager:
    """A connection manager that sends every request to `cluster`. Paths are normalized as in the engine."""
    decodes = normalization.includes(Normalization.DECODE_AND_MERGE_SLASHES)
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
        normalize_path=BoolValue(value=normalization.includes(Normalization.BASE)),
        merge_slashes=normalization.includes(Normalization.MERGE_SLASHES),
        path_with_escaped_slashes_action=(
            HttpConnectionManager.UNESCAPE_AND_FORWARD if decodes else HttpConnectionManager.KEEP_UNCHANGED
        ),
        # The peer's own address, and not one that a header claims. The engine finds the client's behind proxies: a
        # sidecar is none of them, and adds nothing to x-forwarded-for.
        use_remote_address=BoolValue(value=True),
        skip_xff_append=True,
        preserve_external_request_id=True,
        request_headers_timeout=_HEADERS_TIMEOUT,
        delayed_close_timeout=_DELAYED_CLOSE,
        common_http_protocol_options=HttpProtocolOptions(idle_timeout=Duration(seconds=3600)),
        server_header_transformation=HttpConnectionManager.PASS_THROUGH,
        upgrade_configs=[HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
    )


def manager_filter(manager: HttpConnectionManager) -> Filter:
    """The connection manager as a network filter."""
    network_filter = Filter(name="envoy.filters.network.http_connection_manager")
    network_filter.typed_config.Pack(manager)
    return network_filter


def proxy_filter(proxy: TcpProxy) -> Filter:
    """The TCP proxy as a network filter. Its own default closes what is idle for an hour, as for HTTP."""
    network_filter = Filter(name="envoy.filters.network.tcp_proxy")
    network_filter.typed_config.Pack(proxy)
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
    """Another service's sidecars, who must be who they should be wherever they take mutual TLS (Istio's auto mTLS)."""
    addresses = [socket_address(endpoint.address, route.destination_port) for endpoint in route.endpoints]
    principals = [endpoint.principal for endpoint in route.endpoints]
    socket = tls.upstream(principals, route.host)
    cluster = static_cluster(outbound_cluster_name(route), addresses, route.protocol, socket)
    speak_plaintext(cluster, (not endpoint.takes_mtls(route.destination_port) for endpoint in route.endpoints))
    return cluster


def check_cluster(surroundings: Surroundings) -> Cluster:
    """The check service."""
    socket = tls.upstream([surroundings.control_principal], "control.peltast.internal")
    return static_cluster(CHECK_CLUSTER, [socket_address(*surroundings.check_address)], "http", socket)


def borrows(revision: Revision, workload: Workload) -> bool:
    """Whether some limit of `workload` is counted for all sidecars."""
    return any(policy.spec.is_global for policy in revision.snapshot.applying_to(workload, RateLimitPolicySpec))


def quota_cluster(surroundings: Surroundings) -> Cluster:
    """Who lends tokens, over gRPC."""
    socket = tls.upstream([surroundings.control_principal], "control.peltast.internal")
    return static_cluster(QUOTA_CLUSTER, [socket_address(*surroundings.quota_address)], "grpc", socket)


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
    if protocol != TCP:
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
