"""Key sets that are fetched: what is read of an answer, which keys hold, and when to ask for them next.

No I/O here: `now` is an argument, and so is `spread`, a random number from 0 to 1 that keeps many from asking at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from peltast.authz._engine import KeySets
from peltast.authz.canonical import Json, canonical
from peltast.authz.compile import KeySource
from peltast.policies.sources.json_text import read_json

__all__ = ["MAX_AGE", "Answer", "FetchedKeys", "dump", "read_key_set", "restore"]

MAX_AGE = timedelta(hours=24)
"""How long the last good keys hold when no others can be fetched."""

_DEFAULT_LIFETIME = timedelta(minutes=20)  # how often istiod asks
_MIN_LIFETIME, _MAX_LIFETIME = timedelta(minutes=1), timedelta(hours=1)
_FIRST_RETRY, _LAST_RETRY = timedelta(seconds=1), timedelta(minutes=5)
_MEMBERS = ("kty", "kid", "use", "key_ops", "alg", "crv", "n", "e", "x", "y")
_MAX_ERROR = 500
_MAX_AGE_DIRECTIVE = re.compile(r'(?:^|[,\s])max-age\s*=\s*"?([0-9]{1,9})', re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What a server said: the body, and its `Cache-Control` (RFC 9111 section 5.2)."""

    body: bytes
    cache_control: str = ""

    @property
    def lifetime(self) -> timedelta:
        """How long the keys are good by the server's word, within our bounds."""
        found = _MAX_AGE_DIRECTIVE.search(self.cache_control)
        given = timedelta(seconds=int(found[1])) if found else _DEFAULT_LIFETIME
        return min(max(given, _MIN_LIFETIME), _MAX_LIFETIME)


@dataclass(frozen=True)
class FetchedKeys:
    """What is known of the keys at one place."""

    next_fetch: datetime
    keys: Json | None = None
    """The last good ones."""
    fetched: datetime | None = None
    """When they were fetched."""
    failures: int = 0
    """Attempts since then."""
    error: str | None = None
    """Why the last attempt failed."""

    def in_force(self, now: datetime) -> Json | None:
        """The keys that verify tokens at `now`; none where there are none, or only old ones."""
        return self.keys if self.fetched is not None and now < self.fetched + MAX_AGE else None

    def wake(self, now: datetime) -> datetime:
        """When there is next something to be done: keys to be fetched, or to be dropped."""
        if self.in_force(now) is None or self.fetched is None:
            return self.next_fetch
        return min(self.next_fetch, self.fetched + MAX_AGE)

    def succeeded(self, keys: Json, lifetime: timedelta, now: datetime, spread: float) -> FetchedKeys:
        """After an attempt that gave `keys`: the next comes ahead of the end of their `lifetime`."""
        return FetchedKeys(now + lifetime * ((4 + spread) / 6), keys, now)

    def failed(self, error: str, now: datetime, spread: float) -> FetchedKeys:
        """After an attempt that failed: the last good keys stay."""
        delay = min(_FIRST_RETRY * 2 ** min(self.failures, 30), _LAST_RETRY) * (0.8 + spread / 5)
        return FetchedKeys(now + delay, self.keys, self.fetched, self.failures + 1, error[:_MAX_ERROR])


def read_key_set(body: bytes) -> Json:
    """The JWK Set (RFC 7517 section 5) in `body`, with nothing in it that verifying does not need.

    Raises:
        ValueError: it is none, or not one that the engine takes.
    """
    value = read_json(body.decode())
    if not isinstance(value, dict) or not isinstance(value.get("keys"), list):
        raise ValueError("a JWK Set (RFC 7517) is expected")
    keys = [_needed(key) for key in value["keys"] if isinstance(key, dict)]
    read = {"keys": keys}
    KeySets.load(canonical({"fetched": read}))
    return read


def _needed(key: Mapping[str, Any]) -> Json:
    return {name: key[name] for name in _MEMBERS if name in key}


def dump(states: Mapping[KeySource, FetchedKeys]) -> bytes:
    """The last good keys, to be kept through a restart."""
    return json.dumps(
        [
            {"issuer": source.issuer, "uri": source.uri, "fetched": state.fetched.isoformat(), "keys": state.keys}
            for source, state in states.items()
            if state.fetched is not None
        ]
    ).encode()


def restore(dumped: bytes, now: datetime) -> dict[tuple[str, str], FetchedKeys]:
    """What :func:`dump` wrote, by issuer and URI; to be fetched again at once.

    Raises:
        ValueError: something else did.
    """
    try:
        return {
            (kept["issuer"], kept["uri"]): FetchedKeys(
                now, read_key_set(json.dumps(kept["keys"]).encode()), datetime.fromisoformat(kept["fetched"])
            )
            for kept in json.loads(dumped)
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"these are no kept keys: {error}") from error
