"""CheckRequest and CheckResponse (`envoy.service.auth.v3`), to and from the engine's values.

https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/external_auth.proto
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption, QueryParameter
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import BoolValue
from google.rpc.code_pb2 import OK, PERMISSION_DENIED, UNAUTHENTICATED
from google.rpc.status_pb2 import Status

from peltast.authz._engine import Decision, Program, Request

__all__ = ["METADATA_KEY", "TOLD_KEY", "check_response", "engine_request"]

METADATA_KEY = "peltast.dev"
"""The key of our own part in a CheckResponse's dynamic metadata."""

TOLD_KEY = "peltast.dev/told"
"""The context extension that names the headers that are known, where nothing else is but method, host and path."""

TRUNCATED_KEY = "peltast.dev/truncated-body"
"""The context extension by which a sidecar of ours says that there is more of the body."""

_PARTIAL = "x-envoy-auth-partial-body"
"""The header by which Envoy says so."""

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
    body = http.raw_body or http.body.encode()
    headers = _headers(http)
    return Request(
        method=http.method if attributes.request.HasField("http") else None,
        host=http.host,
        path=http.path,
        scheme=http.scheme,
        protocol=http.protocol,
        headers=headers,
        source_principal=attributes.source.principal or None,
        source_ip=source.address or None,
        source_port=_port(source.port_value),
        destination_ip=destination.address or None,
        destination_port=_port(destination.port_value),
        sni=attributes.tls_session.sni or None,
        body=body,
        is_body_whole=TRUNCATED_KEY not in attributes.context_extensions and _is_whole(body, headers),
        told=attributes.context_extensions[TOLD_KEY].split(",") if TOLD_KEY in attributes.context_extensions else None,
    )


def _headers(http: Any) -> list[tuple[str, str]]:
    """All headers. Pseudo-headers are left out: the engine has them as attributes."""
    listed = [
        (header.key, header.value or header.raw_value.decode(errors="replace")) for header in http.header_map.headers
    ]
    every = [*http.headers.items(), *listed]
    return [(name, value) for name, value in every if not name.startswith(":")]


def _is_whole(body: bytes, headers: Iterable[tuple[str, str]]) -> bool:
    """Whether `body` is all of it: also not where Envoy was not told to send any."""
    named = {name.lower(): value for name, value in headers}
    length = named.get("content-length", "")
    cut = length.isascii() and length.isdigit() and int(length[:20]) > len(body)
    return not cut and named.get(_PARTIAL) != "true"


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
                query_parameters_to_set=[
                    QueryParameter(key=name, value=value) for name, value in decision.query_parameters_to_set
                ],
                query_parameters_to_remove=_removed_parameters(decision, sidecar=sidecar),
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
    """The first value of a header takes the place of what was there, more are appended to it."""
    options, seen = [], set()
    for name, value in headers:
        append = BoolValue(value=True) if name in seen else None
        options.append(HeaderValueOption(header=HeaderValue(key=name, value=value), append=append))
        seen.add(name)
    return options


def _removed_parameters(decision: Decision, *, sidecar: bool) -> list[str]:
    """What is removed of the query. Envoy compares names as they are written, our sidecars as they are meant."""
    return [*decision.query_parameters_to_remove, *([] if sidecar else decision.query_parameters_respelled)]


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
        "prints": decision.prints or None,
        "annotations": decision.annotations or None,
    }
    metadata = Struct()
    if decision.dynamic_metadata:
        metadata.update(json.loads(decision.dynamic_metadata))
    metadata.update({METADATA_KEY: {name: value for name, value in own.items() if value is not None}})
    return metadata
