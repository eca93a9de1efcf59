"""gRPC as this mesh uses it: services declared in a line a method, channels that pin whom they talk to.

Every channel and server here is mutual TLS, but for the join port, whose clients have no SVID yet. grpcio cannot match
a URI SAN: clients pin the DNS SAN that only the control plane has, servers read the SPIFFE ID of every caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from cryptography import x509
from spiffe import SpiffeId

from peltast.identity.ca.authority import CONTROL_DNS_NAME
from peltast.identity.certificates import NotAnSvid, spiffe_id_of

__all__ = [
    "Method",
    "caller",
    "channel_credentials",
    "generic_handler",
    "open_channel",
    "server_credentials",
    "server_options",
]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""A program of one workload and a batch of audit records are far below."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
)
# Keep-alive pings come every 30 s from clients of ours; a server must not take them for an attack.
server_options = (
    *_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
    # A stream is opened anew, with the SVID then in force, before the one that it was opened with ends.
    ("grpc.max_connection_age_ms", 25 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 60 * 1000),
)

Method = tuple[Any, type[Any], type[Any]]
"""A coroutine (or async generator), the type of its requests, the type of its responses."""


def generic_handler(
    service: str, unary: Mapping[str, Method] | None = None, streams: Mapping[str, Method] | None = None
) -> grpc.GenericRpcHandler[Any, Any]:
    """A gRPC service: methods of one request and one response, and methods that stream both ways."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            run, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )
        for name, (run, request, response) in (unary or {}).items()
    }
    handlers |= {
        name: grpc.stream_stream_rpc_method_handler(
            run, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )
        for name, (run, request, response) in (streams or {}).items()
    }
    return grpc.method_handlers_generic_handler(service, handlers)


def caller(context: grpc.aio.ServicerContext[Any, Any]) -> SpiffeId:
    """The SPIFFE ID of whoever called.

    Raises:
        NotAnSvid: the caller's certificate has not exactly one URI SAN, or it is no SPIFFE ID.
    """
    certificates = list(context.auth_context().get("x509_pem_cert", []))
    if len(certificates) != 1:
        raise NotAnSvid("the caller showed no certificate")
    return spiffe_id_of(x509.load_pem_x509_certificate(certificates[0]))


def channel_credentials(roots: bytes, chain: bytes | None = None, key: bytes | None = None) -> grpc.ChannelCredentials:
    """Credentials of a client that trusts `roots` and shows `chain`, if it has one."""
    return grpc.ssl_channel_credentials(roots, key, chain)


def open_channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    """A channel to the control plane at `address`: whoever answers must have its DNS SAN."""
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", CONTROL_DNS_NAME))
    return grpc.aio.secure_channel(address, credentials, options=options)


def server_credentials(
    current: Callable[[], tuple[bytes, bytes, bytes]], *, require_client: bool
) -> grpc.ServerCredentials:
    """Credentials of a server whose key, chain and roots (in PEM) are asked for at every handshake.

    Asked for anew, so that a rotated SVID is shown from the next connection on.
    """

    def configuration() -> grpc.ServerCertificateConfiguration:
        key, chain, roots = current()
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    return grpc.dynamic_ssl_server_credentials(
        configuration(), configuration, require_client_authentication=require_client
    )
