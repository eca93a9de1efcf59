"""The demo's own issuer of tokens, with keys that live as long as the demo."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

__all__ = ["AUDIENCE", "ISSUER", "TokenIssuer"]

ISSUER = "https://accounts.bookshop.example"
AUDIENCE = "catalog"

LIFETIME_SECONDS = 600


class TokenIssuer:
    """Signs tokens with RS256 and ES256."""

    def __init__(self) -> None:
        self._rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._ec = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> str:
        """The public keys, as a JWK Set."""
        rsa_key = RSAAlgorithm.to_jwk(self._rsa.public_key(), as_dict=True)
        ec_key = ECAlgorithm.to_jwk(self._ec.public_key(), as_dict=True)
        named = [
            {**rsa_key, "kid": "rs", "alg": "RS256", "use": "sig"},
            {**ec_key, "kid": "es", "alg": "ES256", "use": "sig"},
        ]
        for key in named:
            key.pop("key_ops", None)
        return json.dumps({"keys": named})

    def token(self, algorithm: str = "RS256", **claims: Any) -> str:
        """A token of a buyer, but for `claims`."""
        key, name = (self._rsa, "rs") if algorithm == "RS256" else (self._ec, "es")
        return jwt.encode(self.claims(**claims), key, algorithm, headers={"kid": name})

    def unsigned(self) -> str:
        """A token that claims to need no signature (``alg: none``)."""
        parts = [{"alg": "none", "typ": "JWT"}, self.claims()]
        return (
            ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."
        )

    @staticmethod
    def claims(**claims: Any) -> dict[str, Any]:
        """The claims of a buyer, but for `claims`."""
        now = int(time.time())
        buyer = {"iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "exp": now + LIFETIME_SECONDS}
        return {**buyer, "groups": ["readers", "buyers"], **claims}
