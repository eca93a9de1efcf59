"""The delta xDS protocol, without a network: requests in, responses out.

https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from peltast.proxy.xds.resources import CLUSTER, EXTENSION_CONFIG, LISTENER, SECRET, Resource, Resources

__all__ = ["Acknowledgement", "DeltaSession"]

_ORDER = (SECRET, CLUSTER, EXTENSION_CONFIG, LISTENER)
"""What is referred to goes before what refers to it."""

_WILDCARD = "*"


@dataclass(frozen=True)
class Acknowledgement:
    """What a client said of resources it was sent: their versions by name, and the error if it refused them."""

    type_url: str
    versions: Mapping[str, str]
    error: str | None

    @property
    def accepted(self) -> bool:
        """Whether the resources are in use."""
        return self.error is None


@dataclass
class _Subscription:
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    """Versions by name that the client was sent, or said that it has."""

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class DeltaSession:
    """One client's stream.

    Every resource is sent in a response of its own: a refusal then names the one that is refused.
    """

    def __init__(self) -> None:
        self._subscriptions: dict[str, _Subscription] = {}
        self._sent: dict[str, tuple[str, dict[str, str]]] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._nonces = 0

    def on_request(self, request: DeltaDiscoveryRequest) -> Acknowledgement | None:
        """Takes in a request; gives the acknowledgement that it carries, if it carries one."""
        first = request.type_url not in self._subscriptions
        subscription = self._subscriptions.setdefault(request.type_url, _Subscription())
        if first:
            # A first request without names asks for everything.
            subscription.wildcard = not request.resource_names_subscribe
            subscription.known.update(request.initial_resource_versions)
        for name in request.resource_names_subscribe:
            subscription.wildcard = subscription.wildcard or name == _WILDCARD
            subscription.names.add(name)
            if not first:
                subscription.known.pop(name, None)  # asked for again, so it is sent again
        for name in request.resource_names_unsubscribe:
            subscription.wildcard = subscription.wildcard and name != _WILDCARD
            subscription.names.discard(name)
            subscription.known.pop(name, None)
        return self._acknowledgement(request)

    def _acknowledgement(self, request: DeltaDiscoveryRequest) -> Acknowledgement | None:
        sent = self._sent.pop(request.response_nonce, None)
        if sent is None:
            return None
        error = request.error_detail.message if request.HasField("error_detail") else None
        type_url, versions = sent
        for name, version in versions.items():
            self._refused.pop((type_url, name), None)
            if error is not None:
                self._refused[type_url, name] = version
        return Acknowledgement(type_url, versions, error)

    def settled(self, resources: Resources) -> bool:
        """Whether the client has said that it uses `resources`, all of them and nothing that was taken away."""
        every = ((type_url, each) for type_url, current in resources.items() for each in current.values())
        return not self._sent and all(self._uses(type_url, each) for type_url, each in every)

    def _uses(self, type_url: str, resource: Resource) -> bool:
        subscription = self._subscriptions.get(type_url, _Subscription())
        known, refused = subscription.known.get(resource.name), self._refused.get((type_url, resource.name))
        return known == resource.version != refused

    def responses(self, resources: Resources) -> Iterator[DeltaDiscoveryResponse]:
        """What the client must be sent so that it has `resources`, as far as it asked for them."""
        for type_url in sorted(self._subscriptions, key=_place):
            subscription = self._subscriptions[type_url]
            current = resources.get(type_url, {})
            for resource in current.values():
                if subscription.wants(resource.name) and subscription.known.get(resource.name) != resource.version:
                    subscription.known[resource.name] = resource.version
                    yield self._response(type_url, resource)
            removed = subscription.known.keys() - current.keys()
            if removed:
                for name in removed:
                    del subscription.known[name]
                yield self._removal(type_url, sorted(removed))

    def _response(self, type_url: str, resource: Resource) -> DeltaDiscoveryResponse:
        message = ResourceMessage(name=resource.name, version=resource.version, resource=resource.body)
        nonce = self._nonce(type_url, {resource.name: resource.version})
        return DeltaDiscoveryResponse(type_url=type_url, resources=[message], nonce=nonce)

    def _removal(self, type_url: str, names: list[str]) -> DeltaDiscoveryResponse:
        return DeltaDiscoveryResponse(type_url=type_url, removed_resources=names, nonce=self._nonce(type_url, {}))

    def _nonce(self, type_url: str, versions: dict[str, str]) -> str:
        self._nonces += 1
        nonce = str(self._nonces)
        self._sent[nonce] = (type_url, versions)
        return nonce


def _place(type_url: str) -> tuple[int, str]:
    return (_ORDER.index(type_url) if type_url in _ORDER else len(_ORDER), type_url)
