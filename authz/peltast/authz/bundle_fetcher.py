"""Fetches bundles over HTTP and keeps them fresh: the rim of `fetched_bundle.py`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import structlog

from peltast.authz.fetched_bundle import FetchedBundle, takes_long_polls
from peltast.authz.fetching import FAILURES, ask, open_client, read_body
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.rego_sources import BundleLocation
from peltast.policies.snapshot import Snapshot
from peltast.policies.sources.archive import unpack
from peltast.policies.sources.bundle import Bundle, read_bundle

__all__ = ["BundleFetcher", "BundleStatus", "fetch_bundles"]

MAX_BYTES = 64 * 1024 * 1024
_PATIENCE = timedelta(seconds=3)
_STEP_SECONDS = 660.0  # the longest wait and `timeout` of a policy, which bound the attempt as a whole
_ACCEPT = "application/vnd.openpolicyagent.bundles, application/gzip, application/octet-stream"

log = structlog.get_logger()


@dataclass(frozen=True)
class BundleStatus:
    """How one bundle is, whenever that changes: without an error, one of `revision` was fetched."""

    location: BundleLocation
    revision: str
    error: str | None


@dataclass(frozen=True)
class _Answer:
    """What a server said; without a body, that there is no other bundle."""

    body: bytes | None
    etag: str
    long_polls: bool


async def _take_any(_location: BundleLocation, _bundle: Bundle) -> None:
    """Whoever asks for a bundle once finds out for themselves what is wrong with it."""


class BundleFetcher:
    """Keeps the bundles of some places. Use as an asynchronous context manager.

    `admit` raises InvalidConfiguration for a bundle that is not to be taken. `changed` is called whenever :meth:`found`
    gives another bundle, `report` for a person to know, and `save` with the archive that `kept` is to give after a
    restart.
    """

    def __init__(
        self,
        *,
        admit: Callable[[BundleLocation, Bundle], Awaitable[None]] = _take_any,
        kept: Callable[[BundleLocation], bytes | None] = lambda _: None,
        changed: Callable[[], None] = lambda: None,
        report: Callable[[BundleStatus], None] = lambda _: None,
        save: Callable[[BundleLocation, bytes], None] = lambda *_: None,
    ) -> None:
        self._admit = admit
        self._kept, self._changed, self._report, self._save = kept, changed, report, save
        self._states: dict[BundleLocation, FetchedBundle] = {}
        self._told: dict[BundleLocation, tuple[Bundle | None, str | None]] = {}
        self._tasks: dict[BundleLocation, asyncio.Task[None]] = {}
        self._open = AsyncExitStack()

    async def __aenter__(self) -> BundleFetcher:
        client = open_client(_ACCEPT, _STEP_SECONDS, connections=None)  # each long poll holds one
        self._client = await self._open.enter_async_context(client)
        self._group = await self._open.enter_async_context(asyncio.TaskGroup())
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._drop(self._tasks)
        await self._open.__aexit__(*failure)

    def found(self) -> Mapping[BundleLocation, Bundle | str]:
        """The last good bundle of each place, or why there is none yet."""
        states = ((location, state.bundle or state.error) for location, state in self._states.items())
        return {location: found for location, found in states if found is not None}

    async def follow(self, locations: frozenset[BundleLocation], patience: timedelta = _PATIENCE) -> None:
        """Fetches from `locations` from now on, and from no others. Waits for their first answers, within `patience`.

        What was kept from before a restart is there at once. A place that never had a good bundle is asked anew: what
        changed may be what mends it.
        """
        never_good = [known for known, state in self._states.items() if state.bundle is None and state.error]
        self._drop(never_good)
        firsts = [await self._start(location) for location in locations - self._tasks.keys()]
        waiting = [first for location, first in firsts if self._states[location].bundle is None]
        if waiting:
            await asyncio.wait(waiting, timeout=patience.total_seconds())
        self._drop(self._tasks.keys() - locations)

    async def _start(self, location: BundleLocation) -> tuple[BundleLocation, asyncio.Future[None]]:
        first = asyncio.get_running_loop().create_future()
        bundle = await asyncio.to_thread(self._restored, location)
        self._states[location] = FetchedBundle(datetime.now(UTC), bundle)
        self._told[location] = bundle, None
        self._tasks[location] = self._group.create_task(self._keep_fresh(location, first))
        return location, first

    def _drop(self, locations: Iterable[BundleLocation]) -> None:
        for location in list(locations):
            self._tasks.pop(location).cancel()
            del self._states[location], self._told[location]

    async def _keep_fresh(self, location: BundleLocation, first: asyncio.Future[None]) -> None:
        while True:
            state = self._states[location]
            await asyncio.sleep((state.next_fetch - datetime.now(UTC)).total_seconds())
            self._states[location] = await self._fetch(location, state)
            self._tell(location)
            if not first.done():
                first.set_result(None)

    def _tell(self, location: BundleLocation) -> None:
        """Tells what is otherwise than it was told last: another bundle, another failure."""
        state = self._states[location]
        told_bundle, told_error = self._told[location]
        is_other = state.bundle != told_bundle
        if not is_other and state.error == told_error:
            return
        self._told[location] = state.bundle, state.error
        self._report(BundleStatus(location, state.bundle.revision if state.bundle else "", state.error))
        if is_other:
            self._changed()

    async def _fetch(self, location: BundleLocation, before: FetchedBundle) -> FetchedBundle:
        spread = random.random()  # noqa: S311 - spreads load, hides nothing
        asked = datetime.now(UTC)
        try:
            answer = await self._ask(location, before)
            if answer.body is None:
                return before.unchanged(location, asked, datetime.now(UTC), spread)
            # Reading takes seconds where it is large, and others wait for this thread.
            bundle = await asyncio.to_thread(_read, answer.body, location)
            await self._admit(location, bundle)
        except (*FAILURES, InvalidConfiguration) as error:
            return before.failed(str(error) or type(error).__name__, location, datetime.now(UTC), spread)
        await asyncio.to_thread(self._save, location, answer.body)
        return before.succeeded(
            bundle, answer.etag, location, asked, datetime.now(UTC), spread, long_polls=answer.long_polls
        )

    async def _ask(self, location: BundleLocation, before: FetchedBundle) -> _Answer:
        """One attempt.

        Raises:
            ValueError: the answer is not one that is taken.
            TimeoutError: it took too long.
            httpx.HTTPError: the server could not be reached, or is not who it should be.
        """
        seconds = (location.timeout + before.wait(location)).total_seconds()
        async with ask(self._client, location.url, seconds, before.headers(location)) as response:
            if response.status_code == httpx.codes.NOT_MODIFIED and before.etag:
                return _Answer(None, before.etag, before.long_polls)
            long_polls = takes_long_polls(response.headers.get("content-type", ""))
            return _Answer(await read_body(response, MAX_BYTES), response.headers.get("etag", ""), long_polls)

    def _restored(self, location: BundleLocation) -> Bundle | None:
        content = self._kept(location)
        try:
            return _read(content, location) if content is not None else None
        except ValueError as error:  # other keys, perhaps
            log.warning("kept bundle not taken", policy=location.policy, url=location.url, error=str(error))
            return None


async def fetch_bundles(snapshot: Snapshot) -> Snapshot:
    """`snapshot` with its bundles, fetched once.

    Raises:
        InvalidConfiguration: one could not be fetched, or is none.
    """
    locations = snapshot.bundle_locations
    if not locations:
        return snapshot
    async with BundleFetcher() as bundles:
        await bundles.follow(locations, max(location.timeout + location.wait for location in locations))
        found = bundles.found()
    return snapshot.with_bundles(found)


def _read(content: bytes, location: BundleLocation) -> Bundle:
    return read_bundle(unpack(content), location.verification)
