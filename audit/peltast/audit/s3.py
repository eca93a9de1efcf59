"""Checkpoints in a bucket of S3, or of what speaks its protocol."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.credentials.providers import EnvAWSProvider
from minio.error import MinioException

from peltast.audit.checkpoint import MAX_NOTE
from peltast.audit.sinks import SUFFIX, TIMEOUT_SECONDS, Published, SinkFailed

__all__ = ["S3", "s3_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class S3:
    """An object a checkpoint, in a bucket whose own settings (object lock) keep it."""

    client: Minio
    bucket: str
    prefix: str

    async def put(self, checkpoint: Published) -> None:
        await _in_thread(partial(self._put, checkpoint))

    def _put(self, checkpoint: Published) -> None:
        content = checkpoint.note.encode()
        name = self.prefix + checkpoint.name
        self.client.put_object(self.bucket, name, io.BytesIO(content), len(content), "text/plain; charset=utf-8")

    async def notes(self) -> dict[str, str]:
        return await _in_thread(self._notes)

    def _notes(self) -> dict[str, str]:
        listed = (found.object_name for found in self.client.list_objects(self.bucket, prefix=self.prefix))
        return {name: self._note(name) for name in sorted(filter(None, listed)) if name.endswith(SUFFIX)}

    def _note(self, name: str) -> str:
        response = self.client.get_object(self.bucket, name)
        try:
            return response.read(MAX_NOTE).decode(errors="replace")
        finally:
            response.close()
            response.release_conn()


async def _in_thread(function: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(function)
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise SinkFailed(f"S3: {error}") from error


def s3_of(word: str, environment: Mapping[str, str]) -> S3:
    """The bucket that `word` names; endpoint, region and credentials are those that Amazon's own tools take.

    Raises:
        ValueError: it names none.
    """
    place = urlsplit(word)
    if not place.netloc:
        raise ValueError(f"{word!r} names no bucket; s3://BUCKET/PREFIX does")
    given = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    endpoint = urlsplit(given)
    client = Minio(
        endpoint.netloc,
        credentials=EnvAWSProvider(),
        secure=endpoint.scheme == "https",
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"),
        http_client=urllib3.PoolManager(timeout=TIMEOUT_SECONDS, retries=False),
    )
    prefix = place.path.strip("/")
    return S3(client, place.netloc, f"{prefix}/" if prefix else "")
