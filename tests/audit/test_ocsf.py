from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
import ocsf_json_schema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.rows import CATALOG, SPOOL, STOREFRONT, row

from peltast.audit.columns import BYTES_FIELDS, NUMBER_FIELDS, TEXT_FIELDS
from peltast.audit.ocsf import CLASSES, OCSF_VERSION, PLACES, event

KINDS = ["genesis", "decision", "end", "refusal", "outbound", "act", "heartbeat", "close", "summary", "dropped", None]


@cache
def validator(class_uid: int) -> jsonschema.Draft202012Validator:
    """The schema of a class as OCSF publishes it, every attribute of it known and none else allowed."""
    schema = _schema()
    name = next(name for name, kind in CLASSES.items() if kind.uid == class_uid)
    return jsonschema.Draft202012Validator(schema.get_class_schema(name, list(CLASSES[name].profiles)))


@cache
def _schema() -> ocsf_json_schema.OcsfJsonSchemaEmbedded:
    return ocsf_json_schema.OcsfJsonSchemaEmbedded(ocsf_json_schema.get_ocsf_schema(version=OCSF_VERSION))


def valid(made: dict[str, Any]) -> dict[str, Any]:
    as_read = json.loads(json.dumps(made))
    errors = [f"{error.json_path}: {error.message}" for error in validator(made["class_uid"]).iter_errors(as_read)]
    assert errors == []
    return as_read


def at(made: dict[str, Any], path: str) -> Any:
    value: Any = made
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def test_a_decision_is_http_activity_with_all_that_it_says() -> None:
    made = valid(event(row(
        effect="deny", status=403, policy="bookshop/browse", rule=2, reason="no_allow_rule", decided_by="engine",
        source_principal=STOREFRONT, source_address="127.0.10.1:40001", destination_principal=CATALOG,
        destination_port=8080, token_issuer="https://issuer", token_subject="ada", method="GET", host="catalog:8443",
        path="/books", query="token=x", request_headers="x-tenant: a\nx-region: b", request_id="r-1",
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01", program=b"\x01\x02", hashed=["token_subject"], redacted=["claims"],
    ), "0.1.0"))  # fmt: skip
    assert made == {
        "class_uid": 4002,
        "category_uid": 4,
        "activity_id": 3,
        "type_uid": 400203,
        "severity_id": 3,
        "status_id": 2,
        "time": 1_795_305_601_235,
        "action_id": 2,
        "disposition_id": 2,
        "status_detail": "no_allow_rule",
        "metadata": {
            "version": "1.8.0",
            "product": {"name": "Peltast", "vendor_name": "Peltast", "version": "0.1.0"},
            "profiles": ["host", "security_control", "trace"],
            "uid": f"{SPOOL.hex()}:7",
            "sequence": 41,
            "log_name": "decision",
            "log_provider": CATALOG,
            "log_version": "1",
            "original_time": "2026-11-22T00:00:01.234567891Z",
        },
        "src_endpoint": {"uid": STOREFRONT, "ip": "127.0.10.1", "port": 40001},
        "dst_endpoint": {"uid": CATALOG, "port": 8080},
        "actor": {"app_uid": STOREFRONT, "session": {"issuer": "https://issuer"}, "user": {"uid": "ada"}},
        "http_request": {
            "http_method": "GET",
            "uid": "r-1",
            "url": {"hostname": "catalog:8443", "path": "/books", "query_string": "token=x"},
            "http_headers": [{"name": "x-tenant", "value": "a"}, {"name": "x-region", "value": "b"}],
        },
        "http_response": {"code": 403},
        "policy": {"uid": "bookshop/browse"},
        "firewall_rule": {"uid": "bookshop/browse[2]"},
        "trace": {"uid": "a" * 32},
        "unmapped": {
            "decided_by": "engine",
            "program": "0102",
            "link": "ab" * 32,
            "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
            "hashed": ["token_subject"],
            "redacted": ["claims"],
        },
    }


CASES = [
    # what the row says, and what of the event follows from it
    pytest.param({"method": "GET", "effect": "allow"},
                 {"type_uid": 400203, "severity_id": 1, "status_id": 1, "action_id": 1}, id="allowed"),
    pytest.param({"method": "PROPFIND"},
                 {"type_uid": 400299, "activity_name": "PROPFIND", "unmapped.method": "PROPFIND"}, id="another method"),
    pytest.param({"kind": "end", "decision_sequence": 6, "status": 204, "bytes_received": 3, "bytes_sent": 5},
                 {"type_uid": 400200, "metadata.correlation_uid": f"{SPOOL.hex()}:6", "http_response.code": 204,
                  "status_id": 1, "traffic": {"bytes_out": 3, "bytes_in": 5}}, id="the end of a request"),
    pytest.param({"kind": "end", "status": 503}, {"status_id": 2}, id="an end with an error"),
    pytest.param({"effect": "allow"}, {"type_uid": 400101}, id="a connection"),
    pytest.param({"effect": "deny"}, {"type_uid": 400105}, id="a connection that is denied"),
    pytest.param({"kind": "end", "decision_sequence": 6, "duration_ns": 1_999_999},
                 {"type_uid": 400102, "duration": 1, "unmapped.duration_ns": 1_999_999}, id="the end of a connection"),
    pytest.param({"kind": "refusal", "reason": "no_certificate", "source_address": "[fd00::7]:9"},
                 {"type_uid": 400105, "severity_id": 3, "status_detail": "no_certificate",
                  "src_endpoint": {"ip": "fd00::7", "port": 9}, "dst_endpoint.uid": CATALOG}, id="a refusal"),
    pytest.param({"kind": "outbound", "method": "POST", "destination_principal": STOREFRONT},
                 {"type_uid": 400206, "src_endpoint.uid": CATALOG, "dst_endpoint.uid": STOREFRONT}, id="outbound"),
    pytest.param({"kind": "act", "actor": "file:ada", "action": "configuration.changed", "effect": "allow",
                  "object": "Service/a/b", "detail": "+ x"},
                 {"type_uid": 600303, "actor.user.uid": "file:ada", "api.operation": "configuration.changed",
                  "resources": [{"name": "Service/a/b"}], "message": "+ x", "status_id": 1}, id="a change"),
    pytest.param({"kind": "act", "action": "svid.issue", "effect": "deny"},
                 {"type_uid": 600301, "actor.user.uid": CATALOG, "status_id": 2, "severity_id": 3}, id="an issue"),
    pytest.param({"kind": "act", "action": "token.revoke"}, {"type_uid": 600304}, id="a revocation"),
    pytest.param({"kind": "act", "action": "audit.exported"}, {"type_uid": 600302}, id="an export"),
    pytest.param({"kind": "act", "action": "a.b"}, {"type_uid": 600399, "activity_name": "a.b"}, id="another act"),
    pytest.param({"kind": "genesis", "worker": 1}, {"type_uid": 600203, "app.uid": CATALOG, "unmapped.worker": 1},
                 id="a beginning"),
    pytest.param({"kind": "close"}, {"type_uid": 600204}, id="a close"),
    pytest.param({"kind": "heartbeat"}, {"type_uid": 600299, "activity_name": "heartbeat"}, id="a heartbeat"),
    pytest.param({"kind": "summary", "count": 9, "since_ns": 10**15, "until_ns": 10**15 + 1, "effect": "allow"},
                 {"type_uid": 400106, "count": 9, "start_time": 10**9, "unmapped.until_ns": 10**15 + 1},
                 id="a summary"),
    pytest.param({"kind": "dropped", "count": 9}, {"type_uid": 400106, "severity_id": 4}, id="dropped"),
    pytest.param({"kind": None, "schema": 9}, {"type_uid": 0, "unmapped.body": b"body".hex(),
                 "metadata.log_version": "9"}, id="a record of a later schema"),
    pytest.param({"method": "GET", "host": "h", "query": "q"}, {"http_request.url": None, "unmapped.host": "h",
                 "unmapped.query": "q"}, id="a URL without its path"),
    pytest.param({"source_address": "a pipe:9", "destination_port": 70000, "rule": 1},
                 {"src_endpoint": None, "unmapped.source_address": "a pipe:9", "unmapped.destination_port": 70000,
                  "unmapped.rule": 1}, id="what fits nowhere"),
    pytest.param({"time_ns": 2**64 - 1}, {"metadata.original_time": "2554-07-21T23:34:33.709551615Z"}, id="far ahead"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), CASES)
def test_what_becomes_of_a_row(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    made = valid(event(row(**fields), "0.1.0"))
    assert {path: at(made, path) for path in expected} == expected


def test_a_schema_that_finds_nothing_would_prove_nothing() -> None:
    made = event(row(method="GET"), "0.1.0")
    for broken in ({"time": "now"}, {"surprise": 1}, {"activity_id": 77}, {"metadata": {"version": "1.8.0"}}):
        assert not validator(4002).is_valid({**made, **broken}), broken


NUMBERS = st.integers(0, 2**63 - 1)
FIELDS = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS)},
    optional={
        **dict.fromkeys(TEXT_FIELDS, st.text()),
        **dict.fromkeys(NUMBER_FIELDS, NUMBERS),
        **dict.fromkeys(BYTES_FIELDS, st.binary()),
        "source_address": st.text() | st.from_regex(r"\A[0-9a-f:.\[\]%]{1,20}:[0-9]{1,6}\Z"),
        "effect": st.sampled_from(["allow", "deny", "?"]),
        "redacted": st.lists(st.sampled_from(TEXT_FIELDS)),
        "time_ns": st.integers(0, 2**64 - 1),
    },
)


@given(FIELDS)
def test_whatever_a_row_says_its_event_is_valid_and_says_it_too(fields: dict[str, Any]) -> None:
    made = valid(event(row(**fields), "0.1.0"))
    text = json.dumps(made)
    for name in (name for name in TEXT_FIELDS if name in fields and name not in PLACES):
        assert made["unmapped"][name] == fields[name]
    for name in ("reason", "detail", "policy"):
        assert name not in fields or json.dumps(fields[name]) in text
