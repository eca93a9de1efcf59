"""What operators do beside the control plane, put on record by it: it has the spool."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import grpc

from peltast.cli.console import err
from peltast.cli.settings import operator_socket
from peltast.identity.acts import Act, Report
from peltast.identity.protos.act_pb2 import NoteResponse, OperatorAct
from peltast.identity.rpc import generic_handler

__all__ = ["note_act", "operator_acts_handler"]

REFUSALS = frozenset({"limits.refuse"})
ACTIONS = REFUSALS | {
    "hold.add",
    "hold.remove",
    "partition.drop",
    "auditor.add",
    "auditor.remove",
    "audit.exported",
    "limits.take",
}
"""What may be noted so. The control plane's own acts are none of these."""

_NAME = "peltast.identity.v1.OperatorActs"
_MAX_TEXT = 4096
_SECONDS = 5

Context = grpc.aio.ServicerContext[Any, Any]


def operator_acts_handler(report: Report) -> grpc.GenericRpcHandler[Any, Any]:
    """The service. Who may call it is settled by who may open the socket."""

    async def note(request: OperatorAct, context: Context) -> NoteResponse:
        if request.action not in ACTIONS:
            reason = f"action {request.action!r}: one of {', '.join(sorted(ACTIONS))} is expected"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, reason)
        if max(len(request.actor), len(request.object)) > _MAX_TEXT:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"actor, object: at most {_MAX_TEXT} characters")
        try:
            allowed = request.action not in REFUSALS
            report(Act(request.actor, request.action, request.object, allowed, detail=request.detail))
        except OSError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the act could not be recorded: {error}")
        return NoteResponse()

    return generic_handler(_NAME, {"Note": (note, OperatorAct, NoteResponse)})


async def note_act(state: Path, action: str, subject: str, detail: str = "") -> None:
    """Has the control plane of the mesh with this state record what was done. Says so where it is away."""
    act = OperatorAct(actor=f"user:{_user()}", action=action, object=subject, detail=detail)
    async with grpc.aio.insecure_channel(f"unix:{operator_socket(state)}") as channel:
        call = channel.unary_unary(
            f"/{_NAME}/Note",
            request_serializer=OperatorAct.SerializeToString,
            response_deserializer=NoteResponse.FromString,
        )
        try:
            await call(act, timeout=_SECONDS)
        except grpc.aio.AioRpcError as error:
            err.print(f"Done, but not on record: {action} {subject} ({error.details()})", markup=False)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
