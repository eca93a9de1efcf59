"""Fetches key sets over HTTP and keeps them fresh: the rim of `jwks.py`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from peltast.authz.canonical import Json
from peltast.authz.compile import KeySource
from peltast.authz.fetching import FAILURES, ask, open_client, read_body
from peltast.authz.jwks import MAX_AGE, Answer, FetchedKeys, dump, read_key_set, restore

__all__ = ["KeyFetcher", "KeyStatus"]

MAX_BYTES = 1024 * 1024
_AT_A_TIME = 8
_PATIENCE = timedelta(seconds=1)
_STEP_SECONDS = 60.0  # the longest `timeout` of a rule, which bounds the attempt as a whole
_ACCEPT = "application/jwk-set+json, application/json"

log = structlog.get_logger()


@dataclass(frozen=True)
class KeyStatus:
    """How one issuer's keys are, whenever that changes: without an error, new ones are in force."""

    source: KeySource
    error: str | None


class KeyFetcher:
    """Keeps the key sets of some sources. Use as an asynchronous context manager.

    `changed` is called whenever :meth:`in_force` gives something else, `report` for a person to know, and `save` with
    what is to be given as `kept` after a restart.
    """

    def __init__(
        self,
        *,
        kept: bytes = b"[]",
        changed: Callable[[], None] = lambda: None,
        report: Callable[[KeyStatus], None] = lambda _: None,
        save: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        self._changed, self._report, self._save = changed, report, save
        self._kept = self._restored(kept)
        self._states: dict[KeySource, FetchedKeys] = {}
        self._told: dict[KeySource, tuple[Json | None, str | None]] = {}
        self._tasks: dict[KeySource, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> KeyFetcher:
        self._client = await self._open.enter_async_context(open_client(_ACCEPT, _STEP_SECONDS))
        self._group = await self._open.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._drop(self._tasks)
        await self._open.__aexit__(*failure)

    def in_force(self) -> Mapping[KeySource, Json]:
        """The keys that verify tokens now."""
        now = datetime.now(UTC)
        found = {source: state.in_force(now) for source, state in self._states.items()}
        return {source: keys for source, keys in found.items() if keys is not None}

    async def follow(self, sources: frozenset[KeySource], patience: timedelta = _PATIENCE) -> None:
        """Fetches from `sources` from now on, and from no others. Waits for their first answers, within `patience`."""
        firsts = [self._start(source) for source in sources - self._tasks.keys()]
        if firsts:
            await asyncio.wait(firsts, timeout=patience.total_seconds())
        self._drop(self._tasks.keys() - sources)

    def _start(self, source: KeySource) -> asyncio.Future[None]:
        first = asyncio.get_running_loop().create_future()
        now = datetime.now(UTC)
        state = self._states[source] = replace(self._known(source) or FetchedKeys(now), next_fetch=now)
        self._told[source] = state.in_force(now), state.error
        self._tasks[source] = self._group.create_task(self._keep_fresh(source, first))
        return first

    def _known(self, source: KeySource) -> FetchedKeys | None:
        """What is known from before a restart, or a change of the rule's timeout."""
        same = (
            state for other, state in self._states.items() if (other.issuer, other.uri) == (source.issuer, source.uri)
        )
        return next(same, None) or self._kept.pop((source.issuer, source.uri), None)

    def _drop(self, sources: Iterable[KeySource]) -> None:
        for source in list(sources):
            self._tasks.pop(source).cancel()
            del self._states[source], self._told[source]

    async def _keep_fresh(self, source: KeySource, first: asyncio.Future[None]) -> None:
        while True:
            state, now = self._states[source], datetime.now(UTC)
            await asyncio.sleep((state.wake(now) - now).total_seconds())
            if state.next_fetch <= datetime.now(UTC):
                self._states[source] = await self._fetch(source, state)
            self._tell(source)
            if not first.done():
                first.set_result(None)

    def _tell(self, source: KeySource) -> None:
        """Tells what is otherwise than it was told last: other keys, none any more, another failure."""
        state = self._states[source]
        keys, error = state.in_force(datetime.now(UTC)), state.error
        told_keys, told_error = self._told[source]
        if (keys, error) == (told_keys, told_error):
            return
        self._told[source] = keys, error
        if keys is None and told_keys is not None:
            error = f"the last good keys are {MAX_AGE.total_seconds() / 3600:.0f} h old, and are dropped; {error}"
        self._report(KeyStatus(source, error))
        if keys != told_keys:
            self._changed()

    async def _fetch(self, source: KeySource, before: FetchedKeys) -> FetchedKeys:
        spread = random.random()  # noqa: S311 - spreads load, hides nothing
        try:
            answer = await self._ask(source)
            keys = read_key_set(answer.body)
        except FAILURES as error:
            return before.failed(str(error) or type(error).__name__, datetime.now(UTC), spread)
        state = before.succeeded(keys, answer.lifetime, datetime.now(UTC), spread)
        self._save(dump({**self._states, source: state}))
        return state

    async def _ask(self, source: KeySource) -> Answer:
        """One attempt.

        Raises:
            ValueError: the answer is not one that is taken.
            TimeoutError: it took too long.
            httpx.HTTPError: the server could not be reached, or is not who it should be.
        """
        async with self._turns, ask(self._client, source.uri, source.timeout.total_seconds()) as response:
            return Answer(await read_body(response, MAX_BYTES), response.headers.get("cache-control", ""))

    @staticmethod
    def _restored(kept: bytes) -> dict[tuple[str, str], FetchedKeys]:
        try:
            return restore(kept, datetime.now(UTC))
        except ValueError as error:
            log.warning("kept keys not read", error=str(error))
            return {}
