"""Signed bundles, verified as OPA verifies them: a JWT over the hash of every file.

https://www.openpolicyagent.org/docs/management-bundles#signing
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from peltast.policies.sources.documents import Document, parse
from peltast.policies.sources.folder import Files
from peltast.policies.sources.json_text import read_json

__all__ = ["SIGNATURES", "Verification", "VerificationKey", "verify"]

SIGNATURES = ".signatures.json"
_STRUCTURED = ("data.json", "data.yaml", ".manifest")
"""What is hashed by its value and not by its bytes. OPA has no ``data.yml`` among them."""
_HASHES = {"SHA-256": hashlib.sha256, "SHA-384": hashlib.sha384, "SHA-512": hashlib.sha512}
_MIN_RSA_BITS = 2048
_MIN_SECRET_BYTES = 32

Key = RSAPublicKey | EllipticCurvePublicKey | bytes


@dataclass(frozen=True)
class VerificationKey:
    """A key that bundles may be signed by: a public key in PEM, or the secret of HS256."""

    id: str
    algorithm: str
    key: str = field(repr=False)
    scope: str = ""

    def load(self) -> Key:
        """The key itself.

        Raises:
            ValueError: it is none, or not one for its algorithm. The message does not show it.
        """
        if self.algorithm == "HS256":
            return _secret(self.key)
        try:
            key = load_pem_public_key(self.key.encode())
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("no public key in PEM is given") from None
        if isinstance(key, RSAPublicKey) and self.algorithm == "RS256" and key.key_size >= _MIN_RSA_BITS:
            return key
        if isinstance(key, EllipticCurvePublicKey) and self.algorithm == "ES256" and isinstance(key.curve, SECP256R1):
            return key
        raise ValueError(f"a key that is not for {self.algorithm} is given, or a short one")


@dataclass(frozen=True)
class Verification:
    """By which keys a bundle may be signed; which of them and for what `scope`, where that is said."""

    keys: tuple[VerificationKey, ...]
    keyid: str = ""
    scope: str = ""


def verify(files: Files, verification: Verification | None) -> None:
    """Checks that `files`, a bundle's, are what its signature names, and no others.

    Raises:
        ValueError: they are not, or are not signed though keys are given, or are signed and no key is given.
    """
    content = files.get(SIGNATURES)
    if verification is None:
        if content is not None:
            raise ValueError(f"{SIGNATURES}: the bundle is signed, and the policy gives no keys to verify it by")
        return
    if content is None:
        raise ValueError(f"{SIGNATURES}: is missing; the policy gives keys that the bundle must be signed by")
    signed = _signed_files(_payload(_token(content), verification))
    for name, content in files.items():
        if name != SIGNATURES:
            _check_file(name, content, signed.pop(name, None))
    if signed:
        raise ValueError(f"{min(signed)}: is signed, and is not in the bundle")


def _secret(text: str) -> bytes:
    if len(text.encode()) < _MIN_SECRET_BYTES:  # RFC 7518 section 3.2
        raise ValueError(f"a secret of less than {_MIN_SECRET_BYTES} bytes is given")
    return text.encode()


def _token(content: bytes) -> str:
    value = _object(content, SIGNATURES)
    tokens = value.get("signatures")
    if value.get("plugin") not in (None, "", "_default"):
        raise ValueError(f"{SIGNATURES}: signed for a plug-in, and there are none")
    if not isinstance(tokens, list) or len(tokens) != 1 or not isinstance(tokens[0], str):
        raise ValueError(f"{SIGNATURES}: a list of one JWT is expected as `signatures`")
    return tokens[0]


def _payload(token: str, verification: Verification) -> Mapping[str, Any]:
    """What `token` says, once it is verified by the key that the policy or else the token names."""
    try:
        read = jwt.PyJWS().decode_complete(token, options={"verify_signature": False})
        claims = _object(read["payload"], SIGNATURES)
        keyid = verification.keyid or read["header"].get("kid") or claims.get("keyid")
        key = next((each for each in verification.keys if each.id == keyid), None)
        if key is None:
            raise ValueError(f"{SIGNATURES}: signed by the key {keyid!r}, which the policy does not give")
        jwt.PyJWS().decode(token, key.load(), algorithms=[key.algorithm])
    except jwt.PyJWTError as error:
        raise ValueError(f"{SIGNATURES}: {error}") from None
    wanted = verification.scope or key.scope
    if (claims.get("scope") or "") != wanted:
        raise ValueError(f"{SIGNATURES}: signed for the scope {claims.get('scope')!r}, and {wanted!r} is expected")
    return claims


def _signed_files(claims: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Algorithm and digest of each file."""
    files = claims.get("files")
    if not isinstance(files, list):
        raise ValueError(f"{SIGNATURES}: the JWT names no files")
    try:
        return {str(each["name"]).lstrip("/"): (str(each["algorithm"]), str(each["hash"])) for each in files}
    except (TypeError, KeyError):
        raise ValueError(f"{SIGNATURES}: a file without name, hash and algorithm is signed") from None


def _check_file(name: str, content: bytes, signed: tuple[str, str] | None) -> None:
    if signed is None:
        raise ValueError(f"{name}: is not in the signature")
    algorithm, wanted = signed
    if algorithm not in _HASHES:
        raise ValueError(f"{name}: hashed by {algorithm}; {', '.join(_HASHES)} are taken")
    digest = _HASHES[algorithm](_hashed(name, content)).hexdigest()
    if not secrets.compare_digest(digest.encode(), wanted.lower().encode()):
        raise ValueError(f"{name}: is not what was signed (its hash is {digest})")


def _hashed(name: str, content: bytes) -> bytes:
    base = name.rpartition("/")[2]
    if base not in _STRUCTURED:
        return content
    if base.endswith(".yaml"):
        document = next(parse(name, content), None)
        if not isinstance(document, Document):
            raise ValueError(str(document or f"{name}: is empty"))
        return _canonical(json.dumps(document.value))
    return _canonical(_text(content, name))


def _canonical(text: str) -> bytes:
    """JSON as Go writes it: sorted, without spaces, numbers as they are given, few characters escaped."""
    mark = secrets.token_hex(16)  # fractions travel as texts, which nobody else can write
    try:
        value = json.loads(text, parse_float=lambda literal: mark + literal)
        written = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    written = re.sub(f'"{mark}([^"]*)"', r"\1", written)
    return written.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode()


def _object(content: bytes, name: str) -> Mapping[str, Any]:
    value = read_json(_text(content, name))
    if not isinstance(value, dict):
        raise ValueError(f"{name}: a JSON object is expected")
    return value


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name}: UTF-8 is expected") from None
