"""An issuer of tokens with an RS256 and an ES256 key."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm


class Issuer:
    """`name` is the issuer's name in its tokens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._keys: dict[str, Any] = {
            "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
        }

    def jwks(self) -> str:
        """The public keys; each has its algorithm for its id."""
        rsa_key = RSAAlgorithm.to_jwk(self._keys["RS256"].public_key(), as_dict=True)
        ec_key = ECAlgorithm.to_jwk(self._keys["ES256"].public_key(), as_dict=True)
        keys = [
            {**key, "kid": name, "alg": name, "use": "sig"} for key, name in ((rsa_key, "RS256"), (ec_key, "ES256"))
        ]
        return json.dumps({"keys": [{name: key[name] for name in key if name != "key_ops"} for key in keys]})

    def public_pem(self) -> bytes:
        """The public RSA key, as everybody knows it."""
        return self._keys["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, algorithm: str = "RS256", **claims: Any) -> str:
        """A token that is good for an hour, but for what `claims` say. A claim that is None is left out."""
        now = int(time.time())
        merged = {"iss": self.name, "sub": "ada", "aud": "shop", "exp": now + 3600, **claims}
        merged = {name: value for name, value in merged.items() if value is not None}
        return jwt.encode(merged, self._keys[algorithm], algorithm, headers={"kid": algorithm})
