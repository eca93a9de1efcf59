"""CheckRequest and CheckResponse (`envoy.service.auth.v3`), to and from the engine's values.

https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/external_auth.proto
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc.code_pb2 import OK, PERMISSION_DENIED, UNAUTHENTICATED
from google.rpc.status_pb2 import Status

from peltast.authz._engine import Decision, Program, Request

__all__ = ["METADATA_KEY", "TOLD_KEY", "check_response", "engine_request"]

METADATA_KEY = "peltast.dev"
"""The key of our own part in a CheckResponse's dynamic metadata."""

TOLD_KEY = "peltast.dev/told"
"""The context extension that names the headers that are known, where nothing else is but method, host and path."""

VALID_FOR_MS = 60_000
"""How long a sidecar may keep an answer whose attributes determine it. A changed program ends it at once."""


def engine_request(check: CheckRequest) -> Request:
    """The request that `check` asks about; a connection, where `check` has no HTTP part.

    Raises:
        ValueError: an address or a port in it is none.
    """
    attributes = check.attributes
    source, destination = attributes.source.address.socket_address, attributes.destination.address.socket_address
    http = attributes.request.http
    return Request(
        method=http.method if attributes.request.HasField("http") else None,
        host=http.host,
        path=http.path,
        scheme=http.scheme,
        protocol=http.protocol,
        headers=_headers(http),
        source_principal=attributes.source.principal or None,
        source_ip=source.address or None,
        source_port=_port(source.port_value),
        destination_ip=destination.address or None,
        destination_port=_port(destination.port_value),
        sni=attributes.tls_session.sni or None,
        told=attributes.context_extensions[TOLD_KEY].split(",") if TOLD_KEY in attributes.context_extensions else None,
    )


def _headers(http: Any) -> list[tuple[str, str]]:
    """All headers. Pseudo-headers are left out: the engine has them as attributes."""
    listed = [
        (header.key, header.value or header.raw_value.decode(errors="replace")) for header in http.header_map.headers
    ]
    every = [*http.headers.items(), *listed]
    return [(name, value) for name, value in every if not name.startswith(":")]


def _port(value: int) -> int:
    if value > 65535:
        raise ValueError(f"port {value} is given; 0 to 65535 is expected")
    return value


def check_response(decision: Decision, program: Program, *, sidecar: bool) -> CheckResponse:
    """The answer that carries `decision`, with how it came about for sidecars of ours.

    A `sidecar` of ours verifies the request's token by itself, and keeps the answer for other requests: what this
    request's token does to headers is none of it.
    """
    response = CheckResponse(dynamic_metadata=_metadata(decision, program))
    if decision.allowed:
        response.status.CopyFrom(Status(code=OK))
        to_set, to_remove = decision.request_headers_to_set, decision.request_headers_to_remove
        if sidecar:
            to_set, to_remove = decision.policy_headers_to_set, decision.policy_headers_to_remove
        response.ok_response.CopyFrom(
            OkHttpResponse(
                headers=_options(to_set),
                headers_to_remove=to_remove,
                response_headers_to_add=_options(decision.response_headers_to_add),
            )
        )
    else:
        code = UNAUTHENTICATED if decision.status == 401 else PERMISSION_DENIED
        response.status.CopyFrom(Status(code=code, message=decision.reason))
        response.denied_response.CopyFrom(
            DeniedHttpResponse(
                status=HttpStatus(code=decision.status),
                headers=_options(decision.response_headers_to_add),
                body=decision.body or "",
            )
        )
    return response


def _options(headers: Iterable[tuple[str, str]]) -> list[Any]:
    return [HeaderValueOption(header=HeaderValue(key=name, value=value)) for name, value in headers]


def _metadata(decision: Decision, program: Program) -> Struct:
    own: dict[str, Any] = {
        "policy": decision.policy,
        "rule": decision.rule,
        "reason": decision.reason,
        "source": decision.decided_by,
        "program": decision.program,
        "detail": decision.detail,
        "ttl_ms": VALID_FOR_MS if decision.cacheable else 0,
        "referenced": program.attributes,
        "shadow": decision.shadow or None,
    }
    metadata = Struct()
    metadata.update({METADATA_KEY: {name: value for name, value in own.items() if value is not None}})
    return metadata
