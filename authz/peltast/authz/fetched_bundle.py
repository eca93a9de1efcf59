"""Bundles that are fetched: what is asked, which one holds, and when to ask for the next.

No I/O here: `now` is an argument, and so is `spread`, a random number from 0 to 1 that keeps many from asking at once.
The questions are OPA's: https://www.openpolicyagent.org/docs/management-bundles#bundle-service-api
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from peltast.policies.rego_sources import BundleLocation
from peltast.policies.sources.bundle import Bundle

__all__ = ["FetchedBundle", "takes_long_polls"]

_FIRST_RETRY = timedelta(seconds=1)
_LEAST_PAUSE = timedelta(seconds=1)
"""Between two questions of a long poll, though a server answers at once."""
_MAX_ERROR = 500


@dataclass(frozen=True)
class FetchedBundle:
    """What is known of the bundle at one place."""

    next_fetch: datetime
    bundle: Bundle | None = None
    """The last good one."""
    etag: str = ""
    """Its, as the server has it (RFC 9110 section 8.8.3)."""
    long_polls: bool = True
    """Whether the server takes long polls, as far as is known."""
    failures: int = 0
    """Attempts since the last that did not fail."""
    error: str | None = None
    """Why the last attempt failed."""

    def headers(self, location: BundleLocation) -> dict[str, str]:
        """Of the question: another bundle than ours, a whole one, and how long to wait for it (RFC 7240)."""
        wait = self.wait(location)
        prefer = f"modes=snapshot;wait={wait.total_seconds():.0f}" if wait else "modes=snapshot"
        return {"prefer": prefer, **({"if-none-match": self.etag} if self.etag else {})}

    def wait(self, location: BundleLocation) -> timedelta:
        """How long the server may hold its answer back."""
        return location.wait if self.long_polls else timedelta()

    def succeeded(
        self, bundle: Bundle, etag: str, location: BundleLocation, asked: datetime, now: datetime, spread: float,
        *, long_polls: bool,
    ) -> FetchedBundle:  # fmt: skip
        """After an answer with a bundle."""
        state = FetchedBundle(now, bundle, etag, long_polls)
        return replace(state, next_fetch=state._next(location, asked, now, spread))

    def unchanged(self, location: BundleLocation, asked: datetime, now: datetime, spread: float) -> FetchedBundle:
        """After the answer that there is no other bundle."""
        return replace(self, next_fetch=self._next(location, asked, now, spread), failures=0, error=None)

    def failed(self, error: str, location: BundleLocation, now: datetime, spread: float) -> FetchedBundle:
        """After an attempt that failed: the last good bundle stays."""
        delay = min(_FIRST_RETRY * 2 ** min(self.failures, 30), location.delays[1]) * (0.8 + spread / 5)
        return replace(self, next_fetch=now + delay, failures=self.failures + 1, error=error[:_MAX_ERROR])

    def _next(self, location: BundleLocation, asked: datetime, now: datetime, spread: float) -> datetime:
        if self.wait(location):
            return max(now, asked + _LEAST_PAUSE)
        shortest, longest = location.delays
        return now + shortest + (longest - shortest) * spread


def takes_long_polls(content_type: str) -> bool:
    """Whether a server whose answer has this `Content-Type` takes part in long polling, as OPA tells it."""
    return content_type.partition(";")[0].strip() == "application/vnd.openpolicyagent.bundles"
