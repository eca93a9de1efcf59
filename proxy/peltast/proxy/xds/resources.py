"""xDS resources as immutable values, versioned by what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

__all__ = ["CLUSTER", "EXTENSION_CONFIG", "LISTENER", "MODULE_METADATA", "SECRET", "Resource", "Resources", "resource"]

_PREFIX = "type.googleapis.com/"
CLUSTER = _PREFIX + "envoy.config.cluster.v3.Cluster"
LISTENER = _PREFIX + "envoy.config.listener.v3.Listener"
EXTENSION_CONFIG = _PREFIX + "envoy.config.core.v3.TypedExtensionConfig"
SECRET = _PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

MODULE_METADATA = "peltast.dev/module"
"""The key of a node's metadata that names its build of the module."""


@dataclass(frozen=True)
class Resource:
    """One resource: its name, a hash of its content, and the content."""

    name: str
    version: str
    body: AnyMessage


Resources = Mapping[str, Mapping[str, Resource]]
"""Resources by type URL and name."""


def resource(name: str, message: Any) -> Resource:
    """`message` as a resource. Equal messages have equal versions, in every process."""
    value = message.SerializeToString(deterministic=True)
    body = AnyMessage(type_url=_PREFIX + message.DESCRIPTOR.full_name, value=value)
    return Resource(name, hashlib.sha256(value).hexdigest()[:16], body)
