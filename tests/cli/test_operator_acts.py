"""Commands of operators come on record by the control plane, and nothing else does by the same way."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.acts import Record

from peltast.cli.operator_acts import note_act
from peltast.cli.settings import operator_socket
from peltast.identity.acts import Act
from peltast.identity.protos.act_pb2 import NoteResponse, OperatorAct

USER = f"user:{pwd.getpwuid(os.getuid()).pw_name}"


async def test_an_act_is_recorded_with_who_did_it(
    state: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    await note_act(state, "hold.add", "case 7 2026-11-01 2026-11-02", "Smith v. Jones")
    assert record == [Act(USER, "hold.add", "case 7 2026-11-01 2026-11-02", allowed=True, detail="Smith v. Jones")]
    assert capsys.readouterr().err == ""


async def test_without_a_control_plane_it_is_said_that_nothing_is_on_record(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await note_act(state, "hold.remove", "case 7")
    assert "Done, but not on record: hold.remove case 7" in capsys.readouterr().err


async def test_what_could_not_be_recorded_is_said(
    state: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    record.full = True
    await note_act(state, "hold.remove", "case 7")
    assert "not on record: hold.remove case 7 (the act could not be recorded: the spool is full)" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"action": "svid.issue", "object": "1f"}, "action 'svid.issue': one of audit.exported"),
        ({"action": ""}, "action ''"),
        ({"action": "hold.add", "object": "x" * 4097}, "at most 4096 characters"),
        ({"action": "hold.add", "actor": "x" * 4097}, "at most 4096 characters"),
    ],
)
async def test_the_control_planes_own_acts_cannot_be_made_up(
    state: Path, record: Record, given: dict[str, Any], said: str
) -> None:
    async with grpc.aio.insecure_channel(f"unix:{operator_socket(state)}") as channel:
        call = channel.unary_unary(
            "/peltast.identity.v1.OperatorActs/Note",
            request_serializer=OperatorAct.SerializeToString,
            response_deserializer=NoteResponse.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(OperatorAct(**given))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in (refused.value.details() or "")
    assert record == []
