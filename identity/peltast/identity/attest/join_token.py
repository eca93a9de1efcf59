"""Join tokens: each is good once, for one SPIFFE ID, for a short time."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from spiffe import SpiffeId

__all__ = ["TOKEN_LIFETIME", "JoinTokens"]

TOKEN_LIFETIME = timedelta(minutes=10)
MAX_OUTSTANDING = 10_000


@dataclass(frozen=True)
class _Outstanding:
    spiffe_id: SpiffeId
    expires: datetime


class JoinTokens:
    """The tokens that were given out and not yet used. Kept by their hashes: what is kept cannot be used to join."""

    def __init__(self) -> None:
        self._outstanding: dict[bytes, _Outstanding] = {}

    def generate(self, spiffe_id: SpiffeId, now: datetime) -> str:
        """A new token for `spiffe_id`.

        Raises:
            OverflowError: too many tokens were given out and not used.
        """
        self._outstanding = {key: token for key, token in self._outstanding.items() if token.expires > now}
        if len(self._outstanding) >= MAX_OUTSTANDING:
            raise OverflowError(f"{MAX_OUTSTANDING} join tokens wait to be used")
        token = secrets.token_urlsafe(32)
        self._outstanding[_key(token)] = _Outstanding(spiffe_id, now + TOKEN_LIFETIME)
        return token

    def redeem(self, token: str, now: datetime) -> SpiffeId | None:
        """The SPIFFE ID that `token` is good for; none where it is not, or not any more."""
        outstanding = self._outstanding.pop(_key(token), None)
        return outstanding.spiffe_id if outstanding and now < outstanding.expires else None


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
