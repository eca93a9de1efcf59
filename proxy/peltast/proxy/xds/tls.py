"""TLS between sidecars, and from sidecars to the control plane: 1.3 only, SVIDs by SDS, peers by SPIFFE ID."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.config.core.v3.config_source_pb2 import ApiConfigSource, ConfigSource
from envoy.config.core.v3.grpc_service_pb2 import GrpcService
from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter
from envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2 import TlsInspector
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    SubjectAltNameMatcher,
    TlsParameters,
)
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import SdsSecretConfig
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import (
    CommonTlsContext,
    DownstreamTlsContext,
    UpstreamTlsContext,
)
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from peltast.identity.sds import BUNDLES_SECRET, SVID_SECRET

__all__ = ["AGENT_CLUSTER", "downstream", "inspector", "upstream"]

AGENT_CLUSTER = "peltast-agent"
"""The cluster in every sidecar's bootstrap that leads to its agent's socket."""

# The default maximum of Envoy's upstream TLS is 1.2, and the failure would say "connection failure" only.
_PARAMETERS = TlsParameters(
    tls_minimum_protocol_version=TlsParameters.TLSv1_3,
    tls_maximum_protocol_version=TlsParameters.TLSv1_3,
    ecdh_curves=["X25519MLKEM768", "X25519", "P-256"],
)


def downstream() -> TransportSocket:
    """For listeners that take connections from peers, each of which must show an SVID.

    Without resumption: a resumed session would carry an SVID past its end.
    """
    return _socket(
        DownstreamTlsContext(
            common_tls_context=_common(()),
            require_client_certificate=BoolValue(value=True),
            disable_stateless_session_resumption=True,
            disable_stateful_session_resumption=True,
        )
    )


def upstream(principals: Iterable[str], server_name: str) -> TransportSocket:
    """For connections to a peer that has one of `principals` (SPIFFE IDs)."""
    return _socket(UpstreamTlsContext(common_tls_context=_common(principals), sni=server_name))


def inspector() -> ListenerFilter:
    """Reads the server name that a peer asks for: nothing else tells filters, and so rules, of it."""
    listener_filter = ListenerFilter(name="envoy.filters.listener.tls_inspector")
    listener_filter.typed_config.Pack(TlsInspector())
    return listener_filter


def _common(principals: Iterable[str]) -> CommonTlsContext:
    exact = [
        SubjectAltNameMatcher(san_type=SubjectAltNameMatcher.URI, matcher=StringMatcher(exact=principal))
        for principal in sorted(set(principals))
    ]
    validation = CommonTlsContext.CombinedCertificateValidationContext(
        default_validation_context=CertificateValidationContext(match_typed_subject_alt_names=exact),
        validation_context_sds_secret_config=_secret(BUNDLES_SECRET),
    )
    return CommonTlsContext(
        tls_params=_PARAMETERS,
        tls_certificate_sds_secret_configs=[_secret(SVID_SECRET)],
        combined_validation_context=validation,
    )


def _secret(name: str) -> SdsSecretConfig:
    agent = GrpcService(envoy_grpc=GrpcService.EnvoyGrpc(cluster_name=AGENT_CLUSTER))
    source = ApiConfigSource(api_type=ApiConfigSource.DELTA_GRPC, transport_api_version="V3", grpc_services=[agent])
    return SdsSecretConfig(name=name, sds_config=ConfigSource(api_config_source=source, resource_api_version="V3"))


def _socket(context: Any) -> TransportSocket:
    socket = TransportSocket(name="envoy.transport_sockets.tls")
    socket.typed_config.Pack(context)
    return socket
