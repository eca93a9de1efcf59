"""Processes of the check service: what is no question, and what becomes of questions when one of them ends."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from prometheus_client import CollectorRegistry, generate_latest
from support.check_service import (
    CLIENT_ID,
    HTTP_PORT,
    SERVER_ID,
    asking_raw,
    asks,
    check_service,
    grpc_channel,
    question,
)
from support.http import Connection, Response
from support.peer import context, svid_for
from support.running import ALLOW, command_line, descendants, eventually

from peltast.cli.check_workers import CheckWorkers
from peltast.cli.readiness import takes_connections
from peltast.identity.acts import Act

ASKED, AT_ONCE = "/open/asked/x", "/open"


@pytest.fixture
def asking(folder: Path) -> Path:
    (folder / "policies.yaml").write_text(ALLOW + asks("/open/asked/*", 'input.parsed_path[2] == "ada"'))
    return folder


@pytest.fixture
def tls(state: Path, tmp_path: Path) -> ssl.SSLContext:
    return context(tmp_path / "server", svid_for(state, SERVER_ID))


@asynccontextmanager
async def connected(tls: ssl.SSLContext) -> AsyncIterator[Connection]:
    connection = await Connection.open("127.0.0.1", HTTP_PORT, tls)
    try:
        yield connection
    finally:
        connection.close()


async def post(tls: ssl.SSLContext, body: bytes) -> Response:
    async with connected(tls) as connection:
        return await connection.ask("POST", "/check", body=body)


def metrics(workers: CheckWorkers) -> str:
    registry = CollectorRegistry()
    registry.register(workers.metrics)
    return generate_latest(registry).decode()


def damaged() -> bytes:
    """A question whose path is no UTF-8."""
    return question("/a@b").SerializeToString().replace(b"@", b"\xff")


@pytest.mark.parametrize(
    ("what", "status", "code", "why"),
    [
        (bytes(10_000_000), 413, grpc.StatusCode.RESOURCE_EXHAUSTED, "a CheckRequest has at most 1048576 bytes"),
        (b"access granted", 400, grpc.StatusCode.INVALID_ARGUMENT, "Protobuf"),
        (damaged(), 400, grpc.StatusCode.INVALID_ARGUMENT, "UTF-8"),
        (b"", 403, grpc.StatusCode.PERMISSION_DENIED, f"{SERVER_ID} asks about requests to nobody"),
        (
            question("/", CLIENT_ID).SerializeToString(),
            *(403, grpc.StatusCode.PERMISSION_DENIED),
            f"{SERVER_ID} asks about requests to {CLIENT_ID}",
        ),
    ],
    ids=["10 MB", "no message", "no UTF-8", "no fields", "another's"],
)
async def test_what_is_no_question_is_refused_and_on_record(
    asking: Path, state: Path, tls: ssl.SSLContext, what: bytes, status: int, code: grpc.StatusCode, why: str
) -> None:
    acts: list[Act] = []
    async with check_service(asking, state, acts.append, 1) as workers:
        over_http = await post(tls, what)
        assert (over_http.status, why in over_http.body.decode()) == (status, True), over_http
        async with grpc_channel(state) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asking_raw(channel)(what)
        assert refused.value.code() is code
        assert why in str(refused.value.details()) or code is grpc.StatusCode.RESOURCE_EXHAUSTED
        refusals: Callable[[], int] = lambda: sum(int(act.detail.split()[0]) for act in acts)  # noqa: E731
        await eventually(lambda: refusals() == 2, "both are on record")
        assert {(act.actor, act.action, act.allowed) for act in acts} == {(SERVER_ID, "check.refuse", False)}
        assert all(why in act.object for act in acts)
        assert "peltast_check_refused_total 2.0" in metrics(workers)
        sound = CheckResponse.FromString((await post(tls, question(AT_ONCE).SerializeToString())).body)
        assert sound.status.code == 0, "others are answered as ever"


async def test_a_path_that_is_no_utf_8_is_refused_in_the_http_form(
    asking: Path, state: Path, tls: ssl.SSLContext
) -> None:
    async with check_service(asking, state, [].append, 1), connected(tls) as connection:
        assert (await connection.ask("GET", "/ext_authz/open/\xff")).status == 400


def evaluators(workers: CheckWorkers) -> list[int]:
    below = [pid for worker in workers.pids for pid in descendants(worker)]
    return [pid for pid in below if "peltast.authz.check.evaluator" in command_line(pid)]


async def test_a_worker_that_is_told_to_end_answers_what_it_was_asked(
    asking: Path, state: Path, tls: ssl.SSLContext
) -> None:
    async with check_service(asking, state, [].append, 1) as workers, grpc_channel(state) as channel:
        (worker,) = workers.pids
        for pid in evaluators(workers):
            os.kill(pid, signal.SIGSTOP)  # so that a question takes as long as its policy may
        async with connected(tls) as connection:
            check = asking_raw(channel)
            over_grpc = asyncio.ensure_future(answer_of(check(question(ASKED).SerializeToString())))
            over_http = asyncio.create_task(connection.ask("POST", "/check", body=question(ASKED).SerializeToString()))
            await check(question(AT_ONCE).SerializeToString())  # asked later on the same connection
            await eventually(lambda: connection.asked, "it is sent")
            await post(tls, question(AT_ONCE).SerializeToString())
            os.kill(worker, signal.SIGTERM)
            answers = [CheckResponse.FromString((await over_http).body), CheckResponse.FromString(await over_grpc)]
            said = [answer.dynamic_metadata["peltast.dev"]["reason"] for answer in answers]
            assert said == ["check_unreachable"] * 2, "as the policy says that has no answer"
        await eventually(lambda: worker not in workers.pids, "it ends")
        await eventually(lambda: is_answered(tls), "another takes its place")


async def answer_of(call: Any) -> bytes:
    answer: bytes = await call
    return answer


async def is_answered(tls: ssl.SSLContext) -> bool:
    return await takes_connections("127.0.0.1", HTTP_PORT) and (await post(tls, b"")).status == 403


async def test_no_question_is_lost_when_a_worker_ends_under_load(
    asking: Path, state: Path, tls: ssl.SSLContext
) -> None:
    body = question(AT_ONCE).SerializeToString()
    async with check_service(asking, state, [].append) as workers:
        answered, lost, stopped = 0, 0, asyncio.Event()

        async def client() -> None:
            nonlocal answered, lost
            while not stopped.is_set():
                try:
                    connection = await Connection.open("127.0.0.1", HTTP_PORT, tls)
                except OSError:
                    continue  # nothing was asked yet
                try:
                    while not stopped.is_set():
                        response = await connection.ask("POST", "/check", body=body)
                        answered += response.status == 200
                        if response.headers.get("connection") == "close":
                            break
                except (OSError, EOFError):
                    lost += 1
                connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(client())
            await eventually(lambda: answered > 100, "questions are answered")
            first = workers.pids[0]
            os.kill(first, signal.SIGTERM)
            await eventually(lambda: first not in workers.pids, "it ends")
            enough = answered + 100
            await eventually(lambda: answered > enough, "questions are answered on")
            stopped.set()
        assert lost == 0


async def test_what_every_worker_counts_is_one_sum(asking: Path, state: Path, tls: ssl.SSLContext) -> None:
    async with check_service(asking, state, [].append) as workers:
        for _ in range(20):  # each is a connection, which the kernel gives to either
            await post(tls, question(AT_ONCE).SerializeToString())
        await post(tls, question("/open/asked/ada").SerializeToString())
        wanted = [
            'peltast_check_decisions_total{effect="allow",source="engine"} ',
            'peltast_check_decisions_total{effect="allow",source="cache"} ',
        ]

        def decisions() -> float:
            lines = metrics(workers).splitlines()
            return sum(float(line.removeprefix(each)) for each in wanted for line in lines if line.startswith(each))

        await eventually(lambda: decisions() == 21, "all are counted")
        assert 'peltast_check_duration_seconds_bucket{le="+Inf"} 21.0' in metrics(workers)
        assert "peltast_check_workers 2.0" in metrics(workers)
        os.kill(workers.pids[0], signal.SIGKILL)
        await eventually(lambda: "peltast_check_workers_started_total 3.0" in metrics(workers), "one is started again")
        assert decisions() == 21, "what the dead one counted stays"
