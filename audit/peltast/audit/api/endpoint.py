"""What can be asked where: the routes, and the parameters that each takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes

from peltast.audit.query.parse import PARAMETERS, InvalidQuery, parse
from peltast.audit.query.query import Query
from peltast.audit.query.shape import SHAPES, Kind

__all__ = ["ENDPOINTS", "MAX_LIMIT", "Endpoint"]

MAX_LIMIT = 1000
_MAX_PARAMETERS = 64


@dataclass(frozen=True)
class Endpoint:
    """A route."""

    path: str
    summary: str
    kinds: tuple[Kind, ...]
    counted: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of those that it takes."""
        filters = {name for kind in self.kinds for name in SHAPES[kind].filters}
        others = {"since", "until", "limit"} | ({"count_by"} if self.counted else {"columns", "order", "cursor"})
        others |= {"kind"} if len(self.kinds) > 1 else set()
        return tuple(name for name in PARAMETERS if name in filters | others)

    def given(self, query_string: bytes) -> dict[str, str]:
        """The parameters in a query string, which are UTF-8.

        Raises:
            InvalidQuery: see there.
        """
        try:
            pairs = parse_qsl(
                query_string.decode("ascii"),
                keep_blank_values=True,
                strict_parsing=bool(query_string),
                errors="strict",
                max_num_fields=_MAX_PARAMETERS,
            )
        except ValueError as error:
            raise InvalidQuery("query", _shown(query_string), f"name=value, percent-encoded UTF-8: {error}") from None
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in self.parameters:
                raise InvalidQuery(name, value, f"the parameters here are {', '.join(self.parameters)}")
            if name in found:
                raise InvalidQuery(name, value, "each parameter once")
            found[name] = value
        return found

    def query(self, given: Mapping[str, str], now_ns: int) -> Query:
        """What is asked for.

        Raises:
            InvalidQuery: see there.
        """
        if given.get("kind", self.kinds[0]) not in self.kinds:
            raise InvalidQuery("kind", given["kind"], ", ".join(self.kinds))
        defaults = {"kind": self.kinds[0].value, **({"count_by": ""} if self.counted else {})}
        query = parse({**defaults, **given}, now_ns)
        if query.limit is None or query.limit > MAX_LIMIT:
            raise InvalidQuery("limit", given["limit"], f"1 to {MAX_LIMIT}; further pages by `next`")
        return query


def _shown(query_string: bytes) -> str:
    return unquote_to_bytes(query_string).decode(errors="backslashreplace")


ENDPOINTS = (
    Endpoint(
        "/v1/audit/requests",
        "Requests and refused connections, page by page, or as they are stored.",
        (Kind.REQUESTS, Kind.REFUSALS, Kind.OUTBOUND, Kind.EVENTS),
    ),
    Endpoint("/v1/audit/acts", "Acts of the control plane, page by page, or as they are stored.", (Kind.ACTS,)),
    Endpoint("/v1/audit/counts", "How many rows there are for each combination of columns.", tuple(Kind), counted=True),
)
