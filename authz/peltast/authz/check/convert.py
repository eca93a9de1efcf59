"""CheckResponse (`envoy.service.auth.v3`) from the engine's values. The engine reads CheckRequests by itself.

https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/auth/v3/external_auth.proto
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption, QueryParameter
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse, DeniedHttpResponse, OkHttpResponse
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import BoolValue
from google.rpc.code_pb2 import OK, PERMISSION_DENIED, UNAUTHENTICATED
from google.rpc.status_pb2 import Status

from peltast.authz._engine import Decision

__all__ = ["METADATA_KEY", "TOLD_KEY", "check_response"]

METADATA_KEY = "peltast.dev"
"""The key of our own part in a CheckResponse's dynamic metadata."""

TOLD_KEY = "peltast.dev/told"
"""The context extension that names the headers that are known, where nothing else is but method, host and path."""

KEPT = 256
"""Answers that are kept: few decisions differ, and making an answer takes longer than deciding."""

VALID_FOR_MS = 60_000
"""How long a sidecar may keep an answer whose attributes determine it. A changed program ends it at once."""


def check_response(decision: Decision, referenced: tuple[str, ...], *, sidecar: bool) -> CheckResponse:
    """The answer that carries `decision`, which rests on the attributes `referenced`, with how it came about.

    A `sidecar` of ours verifies the request's token by itself, and keeps the answer for other requests: what this
    request's token does to headers is none of it. Equal decisions share their answer: it is not to be changed.
    """
    # A body may be long, and another each time.
    respond = _response if decision.body is not None else _kept_response
    return respond(decision, referenced, sidecar=sidecar)


def _response(decision: Decision, referenced: tuple[str, ...], *, sidecar: bool) -> CheckResponse:
    metadata = _metadata(decision, referenced)
    if not decision.allowed:
        code = UNAUTHENTICATED if decision.status == 401 else PERMISSION_DENIED
        denied = DeniedHttpResponse(
            status=HttpStatus(code=decision.status),
            headers=_options(decision.response_headers_to_add),
            body=decision.body or "",
        )
        status = Status(code=code, message=decision.reason)
        return CheckResponse(status=status, denied_response=denied, dynamic_metadata=metadata)
    to_set, to_remove = decision.request_headers_to_set, decision.request_headers_to_remove
    if sidecar:
        to_set, to_remove = decision.policy_headers_to_set, decision.policy_headers_to_remove
    ok = OkHttpResponse(
        headers=_options(to_set),
        headers_to_remove=to_remove,
        response_headers_to_add=_options(decision.response_headers_to_add),
        query_parameters_to_set=[
            QueryParameter(key=name, value=value) for name, value in decision.query_parameters_to_set
        ],
        query_parameters_to_remove=_removed_parameters(decision, sidecar=sidecar),
    )
    return CheckResponse(status=Status(code=OK), ok_response=ok, dynamic_metadata=metadata)


_kept_response = lru_cache(KEPT)(_response)


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


def _metadata(decision: Decision, referenced: tuple[str, ...]) -> Struct:
    own: dict[str, Any] = {
        "policy": decision.policy,
        "rule": decision.rule,
        "reason": decision.reason,
        "source": decision.decided_by,
        "program": decision.program,
        "detail": decision.detail,
        "ttl_ms": VALID_FOR_MS if decision.cacheable else 0,
        "referenced": referenced,
        "shadow": decision.shadow or None,
        "prints": decision.prints or None,
        "annotations": decision.annotations or None,
    }
    metadata = Struct()
    if decision.dynamic_metadata:
        metadata.update(json.loads(decision.dynamic_metadata))
    metadata.update({METADATA_KEY: {name: value for name, value in own.items() if value is not None}})
    return metadata
