"""Errors as clients read them (RFC 9457)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import asyncpg
import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from peltast.audit.query.parse import InvalidQuery
from peltast.audit.store.errors import DATABASE_ERRORS

__all__ = ["HANDLERS", "Problem", "problem"]


log = structlog.get_logger()


class Problem(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: HTTPStatus, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def problem(
    status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None, more: Mapping[str, str] | None = None
) -> Response:
    """A response that says what is wrong, and more of it by name."""
    body = {"title": status.phrase, "status": status.value, "detail": detail, **(more or {})}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _of_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem(error.status, str(error), error.headers)


def _of_query(_: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidQuery)
    named = {"parameter": error.parameter, "given": error.given, "allowed": error.allowed}
    return problem(HTTPStatus.BAD_REQUEST, str(error), more=named)


def _of_time(_: Request, error: Exception) -> Response:
    detail = "it takes too long; ask for a shorter time, or by principal"
    return problem(HTTPStatus.GATEWAY_TIMEOUT, detail)


def _of_rights(_: Request, error: Exception) -> Response:
    return problem(HTTPStatus.FORBIDDEN, f"the store refuses your role: {error}")


def _of_store(_: Request, error: Exception) -> Response:
    log.warning("store.away", error=str(error))
    return problem(HTTPStatus.SERVICE_UNAVAILABLE, "the store cannot be asked now", {"retry-after": "1"})


def _of_path(request: Request, error: Exception) -> Response:
    status = HTTPStatus(getattr(error, "status_code", HTTPStatus.NOT_FOUND))
    return problem(status, f"{request.method} is not served here", getattr(error, "headers", None))


HANDLERS: dict[Any, Callable[[Request, Exception], Response]] = {
    Problem: _of_problem,
    InvalidQuery: _of_query,
    asyncpg.QueryCanceledError: _of_time,
    asyncpg.InsufficientPrivilegeError: _of_rights,
    asyncpg.UndefinedTableError: _of_rights,  # what a role reads that may not use the schema
    **dict.fromkeys(DATABASE_ERRORS, _of_store),
    OSError: _of_store,
    HTTPStatus.NOT_FOUND.value: _of_path,
    HTTPStatus.METHOD_NOT_ALLOWED.value: _of_path,
}
