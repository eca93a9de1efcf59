"""The resources that one proxy shall have, and word of their changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from peltast.proxy.xds.resources import Resource, Resources

__all__ = ["Store"]


class Store:
    """Holds one immutable set of resources at a time. Readers see whole sets only."""

    def __init__(self, resources: Resources | None = None) -> None:
        self._resources: Resources = resources or {}
        self._changed = asyncio.Event()

    @property
    def resources(self) -> Resources:
        """The set in force."""
        return self._resources

    def replace(self, resources: Resources) -> None:
        """Puts another set in force."""
        if resources == self._resources:
            return
        self._resources = resources
        self._changed.set()
        self._changed = asyncio.Event()

    def update(self, type_url: str, resources: Mapping[str, Resource]) -> None:
        """Puts other resources of one type in force."""
        self.replace({**self._resources, type_url: resources})

    async def changes(self) -> AsyncIterator[Resources]:
        """The set in force, and every one after it that the reader is in time for."""
        while True:
            changed, resources = self._changed, self._resources
            yield resources
            if self._resources is resources:
                await changed.wait()
