"""A bundle in an OCI image layout: the one layer of the one image of a folder.

https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from peltast.policies.sources.folder import Files
from peltast.policies.sources.json_text import read_json

__all__ = ["layer"]

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
"""The media type by which OPA finds the bundle."""

M = TypeVar("M", bound=BaseModel)


class _Descriptor(BaseModel):
    media_type: str = Field(default="", alias="mediaType")
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: int

    @property
    def file(self) -> str:
        return "blobs/" + self.digest.replace(":", "/")


class _Layout(BaseModel):
    version: str = Field(pattern=r"^1\.0\.0$", alias="imageLayoutVersion")


class _Index(BaseModel):
    manifests: list[_Descriptor] = Field(min_length=1, max_length=1)


class _Image(BaseModel):
    layers: list[_Descriptor]


def layer(files: Files) -> bytes:
    """The archive of the bundle in `files`, by their paths in the layout.

    Raises:
        ValueError: they are no layout of one image with one such layer; the message names the file.
    """
    _read(_Layout, "oci-layout", files.get("oci-layout"))
    (manifest,) = _read(_Index, "index.json", files.get("index.json")).manifests
    image = _read(_Image, manifest.file, _blob(files, manifest))
    layers = [each for each in image.layers if each.media_type == _LAYER]
    if len(layers) != 1:
        raise ValueError(f"{manifest.file}: {len(layers)} layers of the type {_LAYER} are given; one is expected")
    return _blob(files, layers[0])


def _blob(files: Files, descriptor: _Descriptor) -> bytes:
    content = files.get(descriptor.file)
    if content is None:
        raise ValueError(f"{descriptor.file}: is missing")
    if len(content) != descriptor.size or f"sha256:{hashlib.sha256(content).hexdigest()}" != descriptor.digest:
        raise ValueError(f"{descriptor.file}: is not what its name and size say")
    return content


def _read(model: type[M], name: str, content: bytes | None) -> M:
    if content is None:
        raise ValueError(f"{name}: is missing")
    try:
        value: Any = read_json(content.decode())
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
