"""The check service's core takes whatever a caller may send: a decision, or a refusal that has a name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peltast.authz.check.documents import check_revision
from peltast.authz.check.service import CheckService

CATALOG = "spiffe://cluster.local/ns/shop/sa/catalog"
RULES = [
    {"from": [{"source": {"principals": ["*/sa/web"], "ipBlocks": ["10.0.0.0/8"]}}]},
    {"to": [{"operation": {"hosts": ["*.shop"], "paths": ["/a/{*}", "/b*"], "ports": ["8080"]}}]},
    {"when": [{"key": "request.headers[x-a]", "values": ["a*"]}, {"key": "connection.sni", "values": ["*"]}]},
]


@pytest.fixture(scope="module")
def service(mesh: Callable[..., Any], policy: Callable[..., str]) -> CheckService:
    made = CheckService()
    made.take(check_revision(mesh(policy({"rules": RULES})).revision))
    return made


def some(*wanted: str) -> st.SearchStrategy[str]:
    """What is expected, or any text that protobuf can hold."""
    return st.sampled_from(wanted) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


peers = st.builds(
    lambda principal, address, port: AttributeContext.Peer(
        principal=principal, address=Address(socket_address=SocketAddress(address=address, port_value=port))
    ),
    some(CATALOG, "spiffe://cluster.local/ns/front/sa/web"),
    some("127.0.0.2", "10.0.0.1", "::1", ""),
    st.sampled_from([80, 0, 65535, 65536]) | st.integers(0, 2**32 - 1),
)
names = some("x-a", "X-A", ":path", "authorization")
headers = st.dictionaries(names, some("a", "ab", "Bearer x.y.z", ""), max_size=3)
raw_headers = st.lists(
    st.builds(lambda name, raw: HeaderValue(key=name, raw_value=raw), names, st.binary(max_size=8)), max_size=2
)
https = st.builds(
    lambda method, host, path, headers, listed: AttributeContext.HttpRequest(
        method=method, host=host, path=path, headers=headers, header_map=HeaderMap(headers=listed)
    ),
    some("GET", ""),
    some("a.shop", "A.SHOP", ""),
    some("/a/b", "/b/../a/%2e%2e", "*", ""),
    headers,
    raw_headers,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(peers, peers, https, some("a.shop", ""))
def test_any_question_is_decided_or_refused_by_name(
    service: CheckService, source: Any, destination: Any, http: Any, sni: str
) -> None:
    request = CheckRequest(
        attributes=AttributeContext(
            source=source,
            destination=destination,
            request=AttributeContext.Request(http=http),
            tls_session=AttributeContext.TLSSession(sni=sni),
        )
    )
    with contextlib.suppress(PermissionError, LookupError, ValueError):
        response = service.check(request, CATALOG)
        assert destination.principal == CATALOG
        assert (response.status.code == 0) is response.HasField("ok_response")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_question_or_none(service: CheckService, body: bytes) -> None:
    with contextlib.suppress(ValueError, LookupError):
        service.answer(body, sidecar=True)
        raise AssertionError("no such bytes name a workload")
