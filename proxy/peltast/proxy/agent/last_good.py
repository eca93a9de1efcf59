"""The last resources that this node's Envoy accepted, on disk: it can start while the control plane is away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf.message import DecodeError

from peltast.identity.files import write_private
from peltast.proxy.xds.resources import Resource, Resources

__all__ = ["load", "save"]


def save(file: Path, resources: Resources) -> None:
    """Keeps `resources`."""
    messages = [
        ResourceMessage(name=resource.name, version=resource.version, resource=resource.body)
        for by_name in resources.values()
        for resource in by_name.values()
    ]
    write_private(file, DeltaDiscoveryResponse(resources=messages).SerializeToString())


def load(file: Path) -> Resources:
    """What was kept; nothing where there is no file, or it is of no use."""
    try:
        messages = DeltaDiscoveryResponse.FromString(file.read_bytes()).resources
    except (FileNotFoundError, DecodeError):
        return {}
    by_type: dict[str, dict[str, Resource]] = {}
    for message in messages:
        kept = Resource(message.name, message.version, message.resource)
        by_type.setdefault(message.resource.type_url, {})[message.name] = kept
    return by_type


def with_resource(resources: Resources, type_url: str, name: str, value: Resource | None) -> Resources:
    """`resources` with one of them replaced, or (without a value) left out."""
    of_type: Mapping[str, Resource] = resources.get(type_url, {})
    others = {key: each for key, each in of_type.items() if key != name}
    return {**resources, type_url: others if value is None else {**others, name: value}}
