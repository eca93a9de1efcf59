"""OPA bundles as tests need them: archives, signatures made without OPA, image layouts."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

import jwt

SECRET = "a secret of thirty-two bytes, or more"

MODULE = b"package app.rules\n\nallow if data.app.users[input.parsed_path[0]]\n"
DATA = b'{"app": {"users": {"ada": true}}}'
FILES = {"app/rules.rego": MODULE, "data.json": DATA}


def targz(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """An archive of `files`, and of members without content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member)
    return out.getvalue()


def manifest(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def signed(
    given: Mapping[str, bytes], key: Any = SECRET, algorithm: str = "HS256", kid: str | None = "k", **claims: Any
) -> dict[str, bytes]:
    """`given` with a signature over them. Their JSON must be written as it is hashed: sorted, without spaces."""
    hashed = [
        {"name": name, "hash": hashlib.sha256(content).hexdigest(), "algorithm": "SHA-256"}
        for name, content in given.items()
    ]
    payload = json.dumps({"files": hashed, **claims}).encode()
    token = jwt.PyJWS().encode(payload, key, algorithm, headers={"kid": kid} if kid else None)
    return {**given, ".signatures.json": json.dumps({"signatures": [token]}).encode()}


def image(layer: bytes, **changes: Any) -> dict[str, bytes]:
    """An OCI image layout of one image with one layer."""
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    config = blob(b"{}", "application/vnd.oci.image.config.v1+json")
    tar = blob(layer, changes.get("media_type", "application/vnd.oci.image.layer.v1.tar+gzip"))
    body = json.dumps({"schemaVersion": 2, "config": config, "layers": [tar] * changes.get("layers", 1)}).encode()
    described = blob(body, "application/vnd.oci.image.manifest.v1+json")
    return {
        **blobs,
        "oci-layout": json.dumps({"imageLayoutVersion": changes.get("version", "1.0.0")}).encode(),
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [described] * changes.get("images", 1)}).encode(),
    }


def bomb(size: int) -> bytes:
    """A small archive of `size` zeros."""
    member = tarfile.TarInfo("data.json")
    member.size = size
    return gzip.compress(member.tobuf() + bytes(size), 1)
