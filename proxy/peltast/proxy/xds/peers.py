"""What a port's mTLS mode makes of its listener, and of the clusters of those who call it (Istio's auto mTLS)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain, FilterChainMatch
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from google.protobuf.duration_pb2 import Duration

from peltast.policies.kinds.peer_authentication import MtlsMode
from peltast.proxy.xds import module as dynamic_module
from peltast.proxy.xds import tls

__all__ = ["speak_plaintext", "take_peers"]

_HANDSHAKE_TIMEOUT = Duration(seconds=10)
_PLAINTEXT = {"tlsMode": "disabled"}
"""Metadata of an endpoint without mutual TLS, as Istio writes it."""


def take_peers(listener: Listener, mode: MtlsMode, filters: Sequence[Filter]) -> None:
    """Gives `listener` the filter chains of `mode`; each ends with `filters`."""
    if mode is not MtlsMode.DISABLE:
        listener.filter_chains.append(_mutual_tls_chain(filters))
        # It reads the server name, too, which policies may ask for (`connection.sni`).
        listener.listener_filters.append(tls.inspector())
        listener.listener_filters_timeout.CopyFrom(_HANDSHAKE_TIMEOUT)
    if mode is not MtlsMode.STRICT:
        listener.filter_chains.append(_plaintext_chain(filters))
    if mode is MtlsMode.PERMISSIVE:
        _tell_apart(listener.filter_chains)


def _mutual_tls_chain(filters: Sequence[Filter]) -> FilterChain:
    """Takes peers that show an SVID."""
    return FilterChain(
        transport_socket=tls.downstream(),
        transport_socket_connect_timeout=_HANDSHAKE_TIMEOUT,
        filters=[dynamic_module.peer_filter_state(), *filters],
    )


def _plaintext_chain(filters: Sequence[Filter]) -> FilterChain:
    """Takes anybody, as nobody."""
    return FilterChain(filters=[dynamic_module.plaintext_filter_state(), *filters])


def _tell_apart(chains: Iterable[FilterChain]) -> None:
    """Tells TLS from plaintext by a connection's first bytes. One that says nothing is of no chain, and is closed."""
    for chain, protocol in zip(chains, ("tls", "raw_buffer"), strict=True):
        chain.filter_chain_match.CopyFrom(FilterChainMatch(transport_protocol=protocol))


def speak_plaintext(cluster: Cluster, plaintext: Iterable[bool]) -> None:
    """Speaks plaintext to those of the cluster's endpoints of which `plaintext`, in their order, says so.

    By a mark on each: whatever has none is spoken to by the cluster's own transport socket.
    """
    [locality] = cluster.load_assignment.endpoints
    marked = [endpoint for endpoint, is_plain in zip(locality.lb_endpoints, plaintext, strict=True) if is_plain]
    for endpoint in marked:
        endpoint.metadata.filter_metadata["envoy.transport_socket_match"].update(_PLAINTEXT)
    if marked:
        socket = TransportSocket(name="envoy.transport_sockets.raw_buffer")
        socket.typed_config.Pack(RawBuffer())
        match = Cluster.TransportSocketMatch(name="plaintext", transport_socket=socket)
        match.match.update(_PLAINTEXT)
        cluster.transport_socket_matches.append(match)
