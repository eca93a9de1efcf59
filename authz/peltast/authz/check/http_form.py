"""`ext_authz` in its HTTP form: a proxy asks with the request itself, without its body, and reads the answer's status.

https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/filters/http/ext_authz/v3/ext_authz.proto#extensions-filters-http-ext-authz-v3-httpservice

Method, host and path come as they were, the path behind a prefix. Of the headers those come that the proxy is told to
pass on, and which those are only the proxy can say. All else is unknown: who the caller is, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from peltast.authz.check.convert import TOLD_KEY

__all__ = ["PATH_PREFIX", "TOLD_HEADER", "http_answer", "http_question"]

PATH_PREFIX = "/ext_authz"
"""Envoy's `path_prefix`."""

TOLD_HEADER = "x-peltast-allowed-headers"
"""What the proxy adds (`headers_to_add`) to say which headers it passes on (`allowed_headers`), with commas between."""

_ALWAYS_TOLD = ("authorization",)
"""Envoy passes it on whatever it is told, as it does method, host and path."""

_TO_REMOVE = "x-envoy-auth-headers-to-remove"

Headers = list[tuple[str, str]]


def http_question(method: str, target: str, headers: Iterable[tuple[str, str]], caller: str) -> CheckRequest:
    """The CheckRequest for a request to `target`, about requests to `caller`, the workload whose proxy asks.

    Names of `headers` are in lower case. What comes with it that is not told of is left out.
    """
    listed = list(headers)
    host = next((value for name, value in listed if name == "host"), "")
    given = ",".join(value for name, value in listed if name == TOLD_HEADER).lower().split(",")
    told = sorted({*_ALWAYS_TOLD, *(name.strip() for name in given)} - {""})
    known = [HeaderValue(key=name, raw_value=value.encode("latin-1")) for name, value in listed if name in told]
    path = target.removeprefix(PATH_PREFIX)
    http = AttributeContext.HttpRequest(method=method, host=host, path=path, header_map=HeaderMap(headers=known))
    return CheckRequest(
        attributes=AttributeContext(
            destination=AttributeContext.Peer(principal=caller),
            request=AttributeContext.Request(http=http),
            context_extensions={TOLD_KEY: ",".join(told)},
        )
    )


def http_answer(response: CheckResponse) -> tuple[HTTPStatus | int, Headers, bytes]:
    """Status, headers and body that say what `response` does.

    Envoy puts the headers of an answer that allows on the request (`allowed_upstream_headers`) or on the response
    (`allowed_client_headers_on_success`), as it is told.
    """
    if response.HasField("denied_response"):
        denied = response.denied_response
        return denied.status.code, _pairs(denied.headers), denied.body.encode()
    ok = response.ok_response
    if ok.query_parameters_to_set or ok.query_parameters_to_remove:
        return HTTPStatus.FORBIDDEN, [], b"a policy changes the query, which an answer over HTTP cannot carry\n"
    headers = [*_joined(ok.headers), *_pairs(ok.response_headers_to_add)]
    if ok.headers_to_remove:
        headers.append((_TO_REMOVE, ",".join(ok.headers_to_remove)))
    return HTTPStatus.OK, headers, b""


def _joined(options: Iterable[object]) -> Headers:
    """Headers for the request: of several values of one, Envoy would take the last."""
    values: dict[str, list[str]] = {}
    for name, value in _pairs(options):
        values.setdefault(name, []).append(value)
    return [(name, ",".join(each)) for name, each in values.items()]


def _pairs(options: Iterable[object]) -> Headers:
    return [(option.header.key, option.header.value) for option in options]  # type: ignore[attr-defined]
