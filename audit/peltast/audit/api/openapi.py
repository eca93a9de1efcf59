"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.1.html) of what is served."""

from __future__ import annotations

from typing import Any

from peltast.audit.api.endpoint import ENDPOINTS, MAX_LIMIT, Endpoint
from peltast.audit.query.parse import DEFAULT_LIMIT, MAX_TEXT, PARAMETERS

__all__ = ["openapi"]


def openapi() -> dict[str, Any]:
    """The document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Peltast audit log", "version": "1"},
        "paths": {endpoint.path: {"get": _operation(endpoint)} for endpoint in ENDPOINTS},
        "components": {"schemas": {"Problem": _PROBLEM, "Row": _ROW}},
    }


_PROBLEM = {
    "type": "object",
    "description": "RFC 9457. Of a parameter: which one, what was given, what is allowed.",
    "required": ["title", "status", "detail"],
    "properties": {
        "status": {"type": "integer"},
        **{name: {"type": "string"} for name in ("title", "detail", "parameter", "given", "allowed")},
    },
}
_ROW = {"type": "object", "description": "A value for each column that is not absent; see docs/audit.md."}

_STATUSES = {
    "400": "A parameter is wrong.",
    "403": "You have no role, or it may not read this.",
    "406": "None of the media types is served.",
    "503": "Too many ask, or the store is away. Try again.",
    "504": "It takes too long.",
}


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    refused = {status: {"description": text, "content": problem} for status, text in _STATUSES.items()}
    return {
        "summary": endpoint.summary,
        "operationId": endpoint.path.rpartition("/")[2],
        "parameters": [_parameter(endpoint, name) for name in endpoint.parameters],
        "responses": {"200": _answer(endpoint), **refused},
    }


def _parameter(endpoint: Endpoint, name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": PARAMETERS[name].help, "schema": _schema(endpoint, name)}


def _schema(endpoint: Endpoint, name: str) -> dict[str, Any]:
    if name == "limit":
        return {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    if name == "kind":
        return {"type": "string", "enum": list(endpoint.kinds), "default": endpoint.kinds[0]}
    parameter = PARAMETERS[name]
    if parameter.choices:
        return {"type": "string", "enum": list(parameter.choices)}
    return {"type": "string", "maxLength": MAX_TEXT, **({"pattern": parameter.pattern} if parameter.pattern else {})}


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Row"}}
    more = {"more": {"type": "boolean"}} if endpoint.counted else {"next": {"type": ["string", "null"]}}
    properties = {"rows": rows, **more}
    forms = ["application/jsonl", "text/csv", *([] if endpoint.counted else ["text/event-stream"])]
    whole = {"type": "object", "required": list(properties), "properties": properties}
    content: dict[str, Any] = {"application/json": {"schema": whole}}
    content |= {form: {"schema": {"type": "string"}} for form in forms}
    answer: dict[str, Any] = {"description": "What is on record.", "content": content}
    if not endpoint.counted:
        next_page = {"description": 'The next page, with rel="next" (RFC 8288).', "schema": {"type": "string"}}
        answer["headers"] = {"Link": next_page}
    return answer
