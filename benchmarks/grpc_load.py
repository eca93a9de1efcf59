"""Load over gRPC with mutual TLS: calls that are made again as soon as they are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from asking import CONNECTIONS, Answers, Ask
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse

from peltast.identity.rpc import channel_credentials, open_channel
from peltast.identity.svid import Svid


def ask_over_grpc(port: int, state: Path, svid: Svid, question: CheckRequest) -> Ask:
    """Asks `question` for so many seconds, as often as it is answered."""

    async def ask(seconds: float, cpu: Callable[[], float]) -> Answers:
        credentials = channel_credentials((state / "ca" / "root.pem").read_bytes(), svid.chain_pem, svid.key_pem)
        async with open_channel(f"127.0.0.1:{port}", credentials) as channel:
            check = channel.unary_unary(
                "/envoy.service.auth.v3.Authorization/Check",
                request_serializer=CheckRequest.SerializeToString,
                response_deserializer=CheckResponse.FromString,
            )
            await check(question)  # so that there is a connection
            before, ends = cpu(), time.monotonic() + seconds

            async def caller() -> int:
                answers = 0
                while time.monotonic() < ends:
                    response = await check(question)
                    assert response.status.code == 0, response
                    answers += 1
                return answers

            answers = sum(await asyncio.gather(*(caller() for _ in range(CONNECTIONS))))
            return Answers(answers, cpu() - before)

    return lambda seconds, cpu: uvloop.run(ask(seconds, cpu))
