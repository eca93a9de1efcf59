"""``peltast token``: tokens that are no longer good."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any

import grpc
import typer
from rich.table import Table

from peltast.authz.protos.revocation_pb2 import ListRequest, ListResponse, RevokeResponse
from peltast.authz.protos.revocation_pb2 import Revocation as Message
from peltast.authz.revocation_service import LIST_METHOD, REVOKE_METHOD, from_message, to_message
from peltast.authz.revocations import InvalidRevocation, Revocation
from peltast.cli.console import Output, out, print_error, print_json
from peltast.cli.options import OutputOption, State
from peltast.cli.settings import operator_socket

__all__ = ["app"]

app = typer.Typer(help="Tokens that are no longer good.", no_args_is_help=True, add_completion=False)

_SECONDS = 10


class ControlPlaneAway(ConnectionError):
    """No control plane answers on the socket of this state."""


@app.command()
def revoke(
    state: State,
    issuer: Annotated[str, typer.Option(metavar="ISS", help="Issuer of the tokens.")],
    jti: Annotated[str | None, typer.Option(metavar="ID", help="The one token with this id.")] = None,
    subject: Annotated[str | None, typer.Option(metavar="SUB", help="Every token of this subject.")] = None,
    issued_before: Annotated[
        str | None, typer.Option(metavar="TIME", help="Tokens issued before this time (RFC 3339). With --subject: now.")
    ] = None,
) -> None:
    """Revokes tokens: one by its id, all of a subject, or all that were issued before a time.

    Every sidecar refuses them within two seconds, and ends requests and streams that run with one. It is for good;
    tokens that are issued later are not touched (but by --jti).
    """
    try:
        before = _seconds(issued_before) if issued_before else None
        if subject and before is None:
            before = int(datetime.now(UTC).timestamp()) + 1
        revocation = Revocation(issuer, jti, subject, before)
        _run(_call(state, REVOKE_METHOD, to_message(revocation), RevokeResponse))
    except (InvalidRevocation, ControlPlaneAway) as error:
        print_error(error)
        raise typer.Exit(1) from None
    out.print(f"Revoked: {revocation}", markup=False)


@app.command()
def revocations(state: State, output: OutputOption = Output.TEXT) -> None:
    """Lists what is revoked."""
    try:
        response: ListResponse = _run(_call(state, LIST_METHOD, ListRequest(), ListResponse))
    except ControlPlaneAway as error:
        print_error(error)
        raise typer.Exit(1) from None
    listed = [from_message(each) for each in response.revocations]
    if output is Output.JSON:
        print_json([each.to_json() for each in listed])
    else:
        out.print(_table(listed))


def _table(listed: list[Revocation]) -> Table:
    table = Table("issuer", "token", "subject", "issued before", box=None)
    for each in listed:
        before = "" if each.issued_before is None else datetime.fromtimestamp(each.issued_before, UTC).isoformat()
        table.add_row(each.issuer, each.token_id, each.subject, before)
    return table


def _seconds(text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRevocation(f"--issued-before {text!r}: a time such as 2026-11-21T20:00:00Z is expected") from None
    if time.tzinfo is None:
        raise InvalidRevocation(f"--issued-before {text!r}: a time with its zone is expected, such as …Z")
    if time > datetime.now(UTC):
        raise InvalidRevocation(f"--issued-before {text!r} lies ahead: tokens still to be issued would be refused")
    return int(time.timestamp())


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(call)


async def _call(state: State, method: str, request: Message | ListRequest, response: type[Any]) -> Any:
    socket = operator_socket(state)
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        call = channel.unary_unary(
            method, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
        )
        try:
            return await call(request, timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidRevocation(error.details()) from None
            raise ControlPlaneAway(f"{socket}: {error.details()}. Is `peltast up` running with this state?") from None
