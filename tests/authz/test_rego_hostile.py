"""Policies that were written to hurt: a sidecar refuses them or is done in time, in the check tier nobody waits."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from support.rego.hostile import HOSTILE, Hostile
from support.running import eventually

from peltast.authz._engine import LoadError
from peltast.authz.check.documents import check_revision
from peltast.authz.check.front import CheckFront
from peltast.authz.check.pool import EvaluatorPool

Make = Callable[..., Any]

TIMEOUT_MS = 5
MOST_MS = 10 * TIMEOUT_MS
"""The timer is read between steps: one step may be what is left of the time, and a few."""
MEMORY_BYTES = 512 * 1024**2
LOAD_SECONDS = 60.0

CUSTOM = {"action": "CUSTOM", "provider": {"name": "rego"}, "rules": [{}]}
CATALOG = "spiffe://cluster.local/ns/shop/sa/catalog"


def rego(policy: Make, module: str, tier: str, timeout: str, name: str = "rego") -> str:
    spec = {"entrypoint": "data.p.allow", "module": module, "tier": tier, "timeout": timeout, "onError": "allow"}
    return str(policy(spec, kind="RegoPolicy", name=name))


# Sidecar tier ---------------------------------------------------------------------------------------------------------


def in_a_process(evaluate: Callable[[], tuple[str, float]]) -> tuple[str, float]:
    """What `evaluate` gives in a process that has so much memory, and may die."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=_serve, args=(theirs, evaluate))
    child.start()
    theirs.close()
    try:
        assert ours.poll(LOAD_SECONDS), "it takes too long"
        answer: tuple[str, float] = ours.recv()
        return answer
    except EOFError:
        pytest.fail("it ended its process")
    finally:
        child.kill()
        child.join()


def _serve(answers: Connection, evaluate: Callable[[], tuple[str, float]]) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.send(evaluate())


@pytest.mark.parametrize("hostile", [pytest.param(each, id=each.name) for each in HOSTILE])
def test_the_sidecar_tier_refuses_it_or_is_done_in_time(mesh: Make, policy: Make, hostile: Hostile) -> None:
    def evaluate() -> tuple[str, float]:
        try:
            made = mesh(rego(policy, hostile.module, "sidecar", f"{TIMEOUT_MS}ms"), policy(CUSTOM))
        except LoadError as error:
            return f"refused: {error.args[3]}", 0.0
        took = []
        for _ in range(3):
            began = time.thread_time()
            decision = made.decide(headers=list(hostile.headers.items()))
            took.append((time.thread_time() - began) * 1000)
        return f"{decision.reason}: {decision.detail}", min(took)

    outcome, took_ms = in_a_process(evaluate)
    if hostile.refused is None:
        assert not outcome.startswith("refused"), outcome
        assert took_ms < MOST_MS, outcome
    else:
        assert outcome.startswith("refused"), outcome
        assert hostile.refused in outcome


# Check tier -----------------------------------------------------------------------------------------------------------

CHECK_TIMEOUT_MS = 300
FINE = 'package p\nimport rego.v1\nallow if input.parsed_path[0] == "fine"\n'


class Service:
    """The front of a check worker with two evaluators, and a policy beside each hostile one that is not."""

    def __init__(self) -> None:
        self.pool = EvaluatorPool(size=2, memory_bytes=256 * 1024**2)
        self.front = CheckFront(self.pool)

    async def ask(self, path: str, **headers: str) -> CheckResponse:
        http = AttributeContext.HttpRequest(method="GET", host="h", path=path, headers=headers)
        attributes = AttributeContext(
            destination=AttributeContext.Peer(principal=CATALOG), request=AttributeContext.Request(http=http)
        )
        checked = self.front.check(CheckRequest(attributes=attributes).SerializeToString(), CATALOG)
        return checked if isinstance(checked, CheckResponse) else await checked

    async def others(self, until: Callable[[], bool]) -> float:
        """Asks what is fine until `until`, a few times at least. The most that one took of the front's own time."""
        most, asked = 0.0, 0
        while not until() or asked < 3:
            began = time.thread_time()
            response = await self.ask("/fine", **{"x-number": str(asked)})
            assert response.dynamic_metadata["peltast.dev"]["reason"] == "rego_allowed"
            most, asked = max(most, time.thread_time() - began), asked + 1
        return most


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    made = Service()
    yield made
    await made.pool.stop()


IN_CHECK = [each for each in HOSTILE if not each.refused_by_both]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("hostile", [pytest.param(each, id=each.name) for each in IN_CHECK])
async def test_in_the_check_tier_others_do_not_wait_for_it(
    service: Service, mesh: Make, policy: Make, hostile: Hostile
) -> None:
    only = {"rules": [{"to": [{"operation": {"paths": ["/hostile"]}}]}]}
    others = {"rules": [{"to": [{"operation": {"notPaths": ["/hostile"]}}]}]}
    made = mesh(
        rego(policy, hostile.module, "check", f"{CHECK_TIMEOUT_MS}ms"),
        rego(policy, FINE, "check", "1000ms", name="fine"),
        policy({**CUSTOM, **only}),
        policy({**CUSTOM, **others, "provider": {"name": "fine"}}, name="q"),
    )
    await service.front.take(check_revision(made.revision).SerializeToString())
    await eventually(lambda: len(service.pool.pids) == 2, "evaluators that died before have others in their place")
    asking = asyncio.create_task(service.ask("/hostile", **hostile.headers))
    await asyncio.sleep(0)
    most = await service.others(asking.done)
    answer = (await asking).dynamic_metadata["peltast.dev"]
    assert answer["reason"] in ("rego_allowed", "rego_denied", "rego_failed", "check_unreachable")
    assert (answer["source"] == "failed-open") == (answer["reason"] in ("rego_failed", "check_unreachable"))
    assert most < 0.02, "what is evaluated does not take the front's time"
    assert os.getpid() not in service.pool.pids


@pytest.mark.parametrize("hostile", [pytest.param(e, id=e.name) for e in HOSTILE if e.refused_by_both])
def test_what_would_end_the_process_that_loads_it_is_refused_by_the_check_tier_too(
    mesh: Make, policy: Make, hostile: Hostile
) -> None:
    def evaluate() -> tuple[str, float]:
        try:
            mesh(rego(policy, hostile.module, "check", "300ms"), policy(CUSTOM))
        except LoadError as error:
            return str(error.args[3]), 0.0
        return "admitted", 0.0

    assert str(hostile.refused) in in_a_process(evaluate)[0]
