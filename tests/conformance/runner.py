"""Asks cases in a process of its own, which may die of one: a stack or a memory that a case exhausts ends it."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

from conformance.cases import Case, fault

from peltast.authz._engine import QueryError, QueryRefused, RegoQuery

TIME_LIMIT_SECONDS = 20.0
_MEMORY_LIMIT_BYTES = 2 * 1024**3

REFUSED = "refused"


def run(cases: Sequence[Case], tier: str | None) -> Iterator[tuple[Case, str | None]]:
    """Each case with why it does not pass; none where it does; REFUSED where the sidecar tier does not admit it."""
    position = 0
    while position < len(cases):
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.Process(target=_serve, args=(theirs, cases[position:], tier), daemon=True)
        child.start()
        theirs.close()
        try:
            while position < len(cases):
                outcome = ours.recv() if ours.poll(TIME_LIMIT_SECONDS) else "takes too long"
                yield cases[position], outcome
                position += 1
                if outcome == "takes too long":
                    break
        except EOFError:
            yield cases[position], "ends its process"
            position += 1
        finally:
            child.kill()
            child.join()


def _serve(answers: Connection, cases: Sequence[Case], tier: str | None) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for case in cases:
        answers.send(ask(case, tier))


def ask(case: Case, tier: str | None) -> str | None:
    """Why `case` does not pass."""
    try:
        policy = RegoQuery.load(tier, case.modules, case.data, strict=case.strict)
        answer = policy.evaluate(case.query, input=case.input, input_term=case.input_term)
    except QueryRefused as error:
        return REFUSED if tier == "sidecar" else str(error)  # which is never the error that is wanted
    except QueryError as error:
        return fault(case, None, str(error))
    return fault(case, answer, None)
