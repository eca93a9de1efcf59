"""Policies of the check tier are evaluated in processes that die alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from support.running import eventually

from peltast.authz.check.documents import check_revision
from peltast.authz.check.front import CheckFront
from peltast.authz.check.pool import EvaluatorPool

Make = Callable[..., Any]

CATALOG = "spiffe://cluster.local/ns/shop/sa/catalog"

# What asks for /bomb doubles an array of its header 40 times: more than an evaluator may have.
MODULE = (
    """
package p
import rego.v1
default answer := false
answer if input.parsed_path[0] == "fine"
answer if {
    input.parsed_path[0] == "bomb"
    t0 := [input.attributes.request.http.headers["x-much"]]
"""
    + "".join(f"    t{n + 1} := array.concat(t{n}, t{n})\n" for n in range(40))
    + """    t40 != []
}
"""
)


def rego(on_error: str) -> dict[str, Any]:
    return {
        "entrypoint": "data.p.answer",
        "module": MODULE,
        "tier": "check",
        "onError": on_error,
        "timeout": "1000ms",
    }


class Running:
    """A front with its evaluators, all ready."""

    def __init__(self, pool: EvaluatorPool) -> None:
        self.pool = pool
        self.front = CheckFront(pool)

    async def ask(self, path: str, **headers: str) -> CheckResponse:
        http = AttributeContext.HttpRequest(method="GET", host="h", path=path, headers=headers)
        destination = AttributeContext.Peer(principal=CATALOG)
        attributes = AttributeContext(destination=destination, request=AttributeContext.Request(http=http))
        checked = self.front.check(CheckRequest(attributes=attributes).SerializeToString(), CATALOG)
        assert not isinstance(checked, CheckResponse), "nothing here is decided at once"
        return await checked


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(mesh: Make, policy: Make) -> AsyncIterator[Start]:
    pools = []

    async def started(on_error: str = "deny", **sizes: int) -> Running:
        made = mesh(
            policy({"action": "CUSTOM", "provider": {"name": "rego"}, "rules": [{}]}),
            policy({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["DELETE"]}}]}]}, name="deny"),
            policy(rego(on_error), kind="RegoPolicy", name="rego"),
        )
        running = Running(EvaluatorPool(**sizes))
        pools.append(running.pool)
        await running.front.take(check_revision(made.revision).SerializeToString())
        return running

    yield started
    for pool in pools:
        await pool.stop()


def told(response: CheckResponse) -> tuple[bool, str, str]:
    own = response.dynamic_metadata["peltast.dev"]
    return response.status.code == 0, own["reason"], own["source"]


def detail(response: CheckResponse) -> str:
    return response.dynamic_metadata["peltast.dev"]["detail"]


async def test_the_check_tier_is_evaluated_in_other_processes(start: Start) -> None:
    running = await start()
    assert told(await running.ask("/fine")) == (True, "rego_allowed", "engine")
    assert told(await running.ask("/other")) == (False, "rego_denied", "engine")
    assert len(running.pool.pids) == 2
    assert os.getpid() not in running.pool.pids


@pytest.mark.parametrize(
    ("on_error", "wanted"),
    [("deny", (False, "check_unreachable", "engine")), ("allow", (True, "check_unreachable", "failed-open"))],
)
async def test_what_hangs_is_killed_at_its_deadline_and_alone(
    start: Start, on_error: str, wanted: tuple[bool, str, str]
) -> None:
    running = await start(on_error)
    hangs, other = running.pool.pids
    os.kill(hangs, signal.SIGSTOP)  # as good as one that hangs in a built-in
    deadline = asyncio.get_running_loop().time() + 1.0
    asked = [asyncio.create_task(running.ask("/fine")) for _ in range(2)]
    await asyncio.sleep(0)  # each of them has an evaluator now
    (quick,), (slow,) = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    others = 0
    while not slow.done():
        assert told(await running.ask("/fine")) == (True, "rego_allowed", "cache")
        others += 1
    assert asyncio.get_running_loop().time() >= deadline
    assert others > 1, "others are answered while one hangs"
    assert told(quick.result()) == (True, "rego_allowed", "engine")
    assert told(slow.result()) == wanted
    assert detail(slow.result()) == "the policy took longer than 1000 ms"
    await eventually(lambda: hangs not in running.pool.pids, "the one that hangs is killed")
    await eventually(lambda: len(running.pool.pids) == 2, "another takes its place")
    assert other in running.pool.pids


async def test_what_eats_memory_ends_alone(start: Start) -> None:
    running = await start("allow", memory_bytes=256 * 1024 * 1024)
    before = set(running.pool.pids)
    eaten = await running.ask("/bomb", **{"x-much": "x" * 1048576})
    assert told(eaten) == (True, "check_unreachable", "failed-open")
    assert told(await running.ask("/fine"))[0]
    await eventually(lambda: len(set(running.pool.pids) - before) == 1, "another takes its place")
    assert len(before & set(running.pool.pids)) == 1


async def test_what_an_evaluator_was_asked_that_dies_is_answered_at_once(start: Start) -> None:
    running = await start("allow", size=1)
    os.kill(running.pool.pids[0], signal.SIGSTOP)
    asking = asyncio.create_task(running.ask("/fine"))
    await asyncio.sleep(0)
    os.kill(running.pool.pids[0], signal.SIGKILL)
    answer = await asking
    assert told(answer) == (True, "check_unreachable", "failed-open")
    assert detail(answer) == "the policy ended the process that evaluated it"


async def test_one_over_capacity_is_answered_at_once(start: Start) -> None:
    running = await start("allow", size=1, waiting=1)
    os.kill(running.pool.pids[0], signal.SIGSTOP)
    slow = [asyncio.create_task(running.ask("/fine")) for _ in range(2)]
    await asyncio.sleep(0)
    over = await running.ask("/fine")
    assert not any(task.done() for task in slow), "it waits for none of those that were before it"
    assert detail(over) == "the check service is over capacity"
    assert told(over) == (True, "check_unreachable", "failed-open")
    assert [detail(answer) for answer in await asyncio.gather(*slow)] == [
        "the policy took longer than 1000 ms",
        "no evaluator was free in time",
    ]


async def test_a_client_that_goes_away_leaves_its_evaluator_to_others(start: Start) -> None:
    running = await start(size=1)
    asking = asyncio.create_task(running.ask("/fine"))
    await asyncio.sleep(0)
    asking.cancel()
    assert told(await running.ask("/fine"))[0]
    assert running.pool.ended == 0
