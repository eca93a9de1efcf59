"""A snapshot: one consistent configuration, immutable, numbered, named by its content."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, TypeVar

from peltast.policies.audit_policies import AuditPolicies, token_header_problems
from peltast.policies.connections import connection_problems, limit_problems
from peltast.policies.kinds.audit import AuditPolicySpec, Record
from peltast.policies.kinds.authorization import AuthorizationPolicySpec
from peltast.policies.kinds.mesh import MeshConfigSpec
from peltast.policies.kinds.peer_authentication import MtlsMode, PeerAuthenticationSpec
from peltast.policies.kinds.rate_limit import RateLimitPolicySpec
from peltast.policies.kinds.registry import read_resource
from peltast.policies.kinds.rego import RegoPolicySpec
from peltast.policies.kinds.request_authentication import RequestAuthenticationSpec
from peltast.policies.kinds.resource import Resource, Spec
from peltast.policies.kinds.selection import TargetedSpec
from peltast.policies.kinds.workload import (
    TCP,
    ServicePort,
    ServiceSpec,
    WorkloadEntrySpec,
    WorkloadRegistrationSpec,
)
from peltast.policies.peer_authentication import PeerAuthentications
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.rego_library import library_modules
from peltast.policies.rego_sources import (
    BUNDLE,
    MAX_DESCRIPTOR_BYTES,
    BundleLocation,
    RegoSource,
    bundle_folder,
    local_bundle,
)
from peltast.policies.sources.bundle import Bundle
from peltast.policies.sources.documents import parse
from peltast.policies.sources.folder import Files
from peltast.policies.sources.json_text import read_json

__all__ = ["Route", "Snapshot", "Workload", "load"]

_BUNDLE_DATA = ("data.yaml", "data.yml")
"""What is no resource in a folder that is a bundle."""

S = TypeVar("S", bound=Spec)
P = TypeVar(
    "P",
    AuditPolicySpec,
    AuthorizationPolicySpec,
    RateLimitPolicySpec,
    RequestAuthenticationSpec,
    PeerAuthenticationSpec,
)


@dataclass(frozen=True)
class Route:
    """Where a workload's sidecar takes calls to another service, and where they go."""

    service: str
    host: str
    port: int
    destination_port: int
    protocol: str
    endpoints: tuple[Workload, ...]


@dataclass(frozen=True)
class Workload:
    """One workload: an address, an identity, and what its sidecar listens for."""

    namespace: str
    name: str
    address: str
    labels: Mapping[str, str]
    service_account: str
    trust_domain: str
    ports: tuple[ServicePort, ...]
    mtls: Mapping[int, MtlsMode]
    """What each port takes from peers, by the port that they connect to."""
    record: Record = field(default_factory=Record)
    """What its sidecar's audit records say."""
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()

    @property
    def full_name(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def principal(self) -> str:
        """The workload's SPIFFE ID, of Istio's form."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def takes_mtls(self, port: int) -> bool:
        """Whether peers speak mutual TLS to `port`, where they connect: they do wherever they can."""
        return self.mtls[port] is not MtlsMode.DISABLE

    def takes_plaintext(self, port: int) -> bool:
        """Whether `port`, where peers connect, takes plaintext."""
        return self.mtls[port] is not MtlsMode.STRICT


@dataclass(frozen=True)
class Snapshot:
    """All resources of one moment. A snapshot with problems is never made."""

    number: int
    trust_domain: str
    resources: tuple[Resource[Spec], ...]
    rego: Mapping[str, RegoSource]
    workloads: Mapping[str, Workload]

    @cached_property
    def version(self) -> str:
        """A hash of the content: equal for equal configurations, wherever and whenever they were read."""
        content = [
            [
                resource.kind,
                resource.full_name,
                resource.labels,
                resource.dry_run,
                resource.spec.model_dump(mode="json"),
            ]
            for resource in self.resources
        ]
        rego = {name: source.content for name, source in self.rego.items()}
        text = json.dumps([self.trust_domain, content, rego], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def of_kind(self, spec: type[S]) -> Iterator[Resource[S]]:
        """The resources whose spec is a `spec`."""
        yield from self._by_spec.get(spec, ())

    @cached_property
    def _by_spec(self) -> Mapping[type[Spec], Sequence[Resource[Any]]]:
        """Once for all: each of ten thousand policies may ask for the services that it is for."""
        by_spec: dict[type[Spec], list[Resource[Any]]] = {}
        for resource in self.resources:
            by_spec.setdefault(type(resource.spec), []).append(resource)
        return by_spec

    @cached_property
    def mesh(self) -> MeshConfigSpec:
        """The mesh's settings; policies of its root namespace apply everywhere."""
        return mesh_settings(self.resources)

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The mesh's trust domain, then its aliases."""
        return tuple(dict.fromkeys((self.trust_domain, *self.mesh.trust_domain_aliases)))

    @property
    def bundle_locations(self) -> frozenset[BundleLocation]:
        """Where bundles are to be fetched from."""
        locations = (source.location for source in self.rego.values())
        return frozenset(location for location in locations if location is not None)

    def with_bundles(self, fetched: Mapping[BundleLocation, Bundle | str]) -> Snapshot:
        """The same snapshot with the bundles that were fetched, or why one was not.

        Raises:
            InvalidConfiguration: one was not, or does not go together with what its policy says itself.
        """
        problems: list[Problem] = []
        rego = dict(self.rego)
        for name, source in self.rego.items():
            if source.location is not None:
                try:
                    rego[name] = source.with_bundle(fetched.get(source.location, "it was not fetched yet"))
                except InvalidConfiguration as invalid:
                    problems += invalid.problems
        if problems:
            raise InvalidConfiguration(problems)
        return replace(self, rego=rego)

    def applying_to(self, workload: Workload, spec: type[P]) -> Iterator[Resource[P]]:
        """The policies of one kind that are for `workload`, in order of their names."""
        for resource in self.of_kind(spec):
            in_scope = resource.namespace in (self.mesh.root_namespace, workload.namespace)
            if in_scope and resource.spec.selector.selects(workload.labels) and self._is_target(resource, workload):
                yield resource

    def _is_target(self, resource: Resource[Spec], workload: Workload) -> bool:
        """Whether `workload` is behind a service that the policy is for; true of a policy that is for no services."""
        if not isinstance(resource.spec, TargetedSpec) or not resource.spec.targets:
            return True
        return bool(self.target_ports(resource, workload))  # type: ignore[arg-type]

    def target_ports(self, resource: Resource[TargetedSpec], workload: Workload) -> list[int]:
        """The ports at which peers reach `workload` by the services that a policy is for."""
        names = {target.name for _, target in resource.spec.targets}
        if not names:
            return []
        services = (
            service
            for service in self.of_kind(ServiceSpec)
            if service.name in names
            and service.namespace == resource.namespace
            and selects(service, workload.namespace, workload.labels)
        )
        return sorted(port.port for service in services for port in service.spec.ports)


def load(files: Files, trust_domain: str, number: int) -> Snapshot:
    """Makes a snapshot of `files`.

    Raises:
        InvalidConfiguration: with all problems that were found. Cross references are checked once every resource is
            sound by itself.
    """
    resources, problems = _read_resources(files)
    problems += _duplicates(resources)
    if problems:
        raise InvalidConfiguration(problems)
    resources.sort(key=lambda resource: (resource.kind, resource.namespace, resource.name))
    loader = _Linker(resources, files, trust_domain)
    rego = loader.rego()
    workloads = loader.workloads()
    loader.check_providers()
    loader.check_targets()
    loader.check_mesh()
    if loader.problems:
        raise InvalidConfiguration(loader.problems)
    snapshot = Snapshot(number, trust_domain, tuple(resources), rego, workloads)
    if problems := [*_connection_problems(snapshot), *token_header_problems(snapshot)]:
        raise InvalidConfiguration(problems)
    return snapshot


def mesh_settings(resources: Iterable[Resource[Spec]]) -> MeshConfigSpec:
    """What the one MeshConfig says; the defaults where there is none."""
    specs = (resource.spec for resource in resources if isinstance(resource.spec, MeshConfigSpec))
    return next(specs, MeshConfigSpec())


def _connection_problems(snapshot: Snapshot) -> list[Problem]:
    """Each field once, though it be a problem for many workloads."""
    first: dict[tuple[str, int, str], Problem] = {}
    for workload in snapshot.workloads.values():
        ports = [port.target_port for port in workload.ports if port.app_protocol == TCP]
        for policy in snapshot.applying_to(workload, AuthorizationPolicySpec) if ports else ():
            for problem in connection_problems(policy, workload.full_name, ports):
                first.setdefault((problem.file, problem.line, problem.field), problem)
        for limits in snapshot.applying_to(workload, RateLimitPolicySpec) if ports else ():
            for problem in limit_problems(limits, workload.full_name, ports):
                first.setdefault((problem.file, problem.line, problem.field), problem)
    return list(first.values())


def _read_resources(files: Files) -> tuple[list[Resource[Spec]], list[Problem]]:
    resources: list[Resource[Spec]] = []
    problems: list[Problem] = []
    later = [name for name in files if PurePosixPath(name).name in _BUNDLE_DATA]
    for name, content in files.items():
        if name.endswith((".yaml", ".yml")) and name not in later:
            _read_file(name, content, resources, problems)
    bundles = {bundle_folder(each) for each in resources if isinstance(each.spec, RegoPolicySpec)}  # type: ignore[arg-type]
    for name in later:
        if bundles.isdisjoint(PurePosixPath(name).parents):
            _read_file(name, files[name], resources, problems)
    return resources, problems


def _read_file(name: str, content: bytes, resources: list[Resource[Spec]], problems: list[Problem]) -> None:
    for document in parse(name, content):
        if isinstance(document, Problem):
            problems.append(document)
        elif document.value is not None:  # else there is nothing between two `---`
            try:
                resources.append(read_resource(document))
            except InvalidConfiguration as invalid:
                problems += invalid.problems


def _duplicates(resources: Iterable[Resource[Spec]]) -> list[Problem]:
    first: dict[tuple[str, str], Resource[Spec]] = {}
    problems = []
    for resource in resources:
        key = (resource.kind, resource.full_name)
        if key in first:
            document = first[key].document
            allowed = f"the first is in {document.file}:{document.line(())}"
            problems.append(resource.problem(("metadata", "name"), f"{' '.join(key)} is given twice", allowed))
        first.setdefault(key, resource)
    return problems


class _Linker:
    """Resolves what resources say of each other, and collects what does not fit."""

    def __init__(self, resources: list[Resource[Spec]], files: Files, trust_domain: str) -> None:
        self.resources = resources
        self.files = files
        self.trust_domain = trust_domain
        self.problems: list[Problem] = []
        root_namespace = mesh_settings(resources).root_namespace
        self.peers = PeerAuthentications(tuple(self.of(PeerAuthenticationSpec).values()), root_namespace)
        self.audit = AuditPolicies(tuple(self.of(AuditPolicySpec).values()), root_namespace)

    def of(self, spec: type[S]) -> dict[str, Resource[S]]:
        found = (resource for resource in self.resources if isinstance(resource.spec, spec))
        return {resource.full_name: resource for resource in found}  # type: ignore[misc]

    def refuse(self, resource: Resource[Spec], path: tuple[str | int, ...], given: str, allowed: str) -> None:
        self.problems.append(resource.problem(("spec", *path), given, allowed))

    # Rego -----------------------------------------------------------------------------------------------------------

    def rego(self) -> dict[str, RegoSource]:
        return {name: self.rego_source(resource) for name, resource in self.of(RegoPolicySpec).items()}

    def rego_source(self, resource: Resource[RegoPolicySpec]) -> RegoSource:
        modules: dict[str, str] = {}
        data: dict[str, object] = dict(resource.spec.data)
        if resource.spec.module is not None:
            modules[f"RegoPolicy {resource.full_name}"] = resource.spec.module  # no file is called so
        for name in resource.spec.library:
            modules[f"Peltast's library/{name}.rego"] = library_modules()[name]
        folder = PurePosixPath(resource.document.file).parent
        for index, file in enumerate(resource.spec.files):
            name = (folder / file).as_posix()
            content = self.files.get(name)
            if content is None:
                self.refuse(resource, ("files", index), f"{file!r} is given", f"there is no file {name}")
                continue
            try:
                self.take_file(name, content.decode(), modules, data)
            except ValueError as error:
                self.refuse(
                    resource, ("files", index), f"{file}: {error}", "Rego or a JSON object in UTF-8 is expected"
                )
        return self.with_local_bundle(RegoSource(resource, modules, data, descriptors=self.descriptors(resource)))

    def descriptors(self, resource: Resource[RegoPolicySpec]) -> bytes | None:
        given = resource.spec.proto_descriptor
        if given is None:
            return None
        name = (PurePosixPath(resource.document.file).parent / given).as_posix()
        content = self.files.get(name)
        if content is None:
            self.refuse(resource, ("protoDescriptor",), f"{given!r} is given", f"there is no file {name}")
        elif len(content) > MAX_DESCRIPTOR_BYTES:
            allowed = f"a FileDescriptorSet has at most {MAX_DESCRIPTOR_BYTES} bytes"
            self.refuse(resource, ("protoDescriptor",), f"{len(content)} bytes are given", allowed)
        return content

    def with_local_bundle(self, source: RegoSource) -> RegoSource:
        bundle = source.resource.spec.bundle
        if bundle is None or bundle.url is not None:
            return source
        at = ("bundle", bundle.field)
        try:
            source = replace(source, bundle=local_bundle(self.files, source.resource, bundle))
            wrong = source.conflict()
        except ValueError as error:
            wrong = str(error)
        if wrong is not None:
            self.refuse(source.resource, at, f"{getattr(bundle, bundle.field)}: {wrong}", BUNDLE)
        return source

    @staticmethod
    def take_file(name: str, content: str, modules: dict[str, str], data: dict[str, object]) -> None:
        if name.endswith(".rego"):
            modules[name] = content
            return
        value = read_json(content)
        if not isinstance(value, dict):
            raise ValueError("the file holds no JSON object")
        if twice := sorted(value.keys() & data.keys()):
            raise ValueError(f"data.{twice[0]} is given twice")
        data.update(value)

    def check_providers(self) -> None:
        known = self.of(RegoPolicySpec)
        for resource in self.of(AuthorizationPolicySpec).values():
            provider = resource.spec.provider
            if provider is not None and provider_name(resource.namespace, provider.name) not in known:
                allowed = f"a RegoPolicy is expected; known are {', '.join(known) or 'none'}"
                self.refuse(resource, ("provider", "name"), f"{provider.name!r} is given", allowed)

    def check_targets(self) -> None:
        known = self.of(ServiceSpec)
        for resource in self.resources:
            for at, target in resource.spec.targets if isinstance(resource.spec, TargetedSpec) else ():
                if target.namespace not in ("", resource.namespace):
                    allowed = f"a Service of the policy's namespace, {resource.namespace}, is expected"
                    self.refuse(resource, (*at, "namespace"), f"{target.namespace!r} is given", allowed)
                elif f"{resource.namespace}/{target.name}" not in known:
                    allowed = f"a Service is expected; known are {', '.join(known) or 'none'}"
                    self.refuse(resource, (*at, "name"), f"{target.name!r} is given", allowed)

    def check_mesh(self) -> None:
        first, *others = self.of(MeshConfigSpec).values() or [None]
        for other in others:
            if first is not None and other is not None:
                allowed = f"a mesh has one; the first is in {first.document.file}:{first.document.line(())}"
                self.problems.append(other.problem(("kind",), "a second MeshConfig is given", allowed))

    # Workloads ------------------------------------------------------------------------------------------------------

    def workloads(self) -> dict[str, Workload]:
        entries = self.of(WorkloadEntrySpec)
        registrations = self.registrations(entries)
        plain = {name: self.plain_workload(entry, registrations.get(name)) for name, entry in entries.items()}
        self.check_addresses(entries, plain)
        self.problems += self.peers.problems(list(plain.values()))
        self.problems += self.audit.problems(plain.values())
        linked = {name: self.routed(plain[name], registration, plain) for name, registration in registrations.items()}
        return {**plain, **linked}

    def registrations(
        self, entries: Mapping[str, Resource[WorkloadEntrySpec]]
    ) -> dict[str, Resource[WorkloadRegistrationSpec]]:
        by_workload: dict[str, Resource[WorkloadRegistrationSpec]] = {}
        for resource in self.of(WorkloadRegistrationSpec).values():
            name = provider_name(resource.namespace, resource.spec.workload)
            if name not in entries:
                allowed = f"a WorkloadEntry is expected; known are {', '.join(entries) or 'none'}"
                self.refuse(resource, ("workload",), f"{resource.spec.workload!r} is given", allowed)
            elif name in by_workload:
                other = by_workload[name].full_name
                self.refuse(resource, ("workload",), f"{name} is given", f"{other} registers it already")
            else:
                by_workload[name] = resource
        return by_workload

    def plain_workload(
        self, entry: Resource[WorkloadEntrySpec], registration: Resource[WorkloadRegistrationSpec] | None
    ) -> Workload:
        labels = {**entry.labels, **entry.spec.labels}
        services = [service for service in self.of(ServiceSpec).values() if selects(service, entry.namespace, labels)]
        ports = tuple(port for service in services for port in service.spec.ports)
        return Workload(
            namespace=entry.namespace,
            name=entry.name,
            address=str(ipaddress.ip_address(entry.spec.address)),  # one way to write it, which peers use too
            labels=labels,
            service_account=entry.spec.service_account,
            trust_domain=self.trust_domain,
            ports=ports,
            mtls={port.port: self.peers.mode(entry.namespace, labels, port.target_port) for port in ports},
            record=self.audit.record(entry.namespace, labels),
            command=tuple(registration.spec.command) if registration else (),
            environment=registration.spec.environment if registration else {},
        )

    def check_addresses(
        self, entries: Mapping[str, Resource[WorkloadEntrySpec]], workloads: Mapping[str, Workload]
    ) -> None:
        addresses = Counter(workload.address for workload in workloads.values())
        for name, entry in entries.items():
            if addresses[workloads[name].address] > 1:
                self.refuse(entry, ("address",), f"{entry.spec.address} is given twice", "each has its own address")
            listened = Counter(port.port for port in workloads[name].ports)
            listened.update({port.target_port for port in workloads[name].ports})
            for port, count in listened.items():
                if count > 1:
                    allowed = "the sidecar and the application each need a port of their own on it"
                    self.refuse(entry, ("address",), f"port {port} of {entry.spec.address} is wanted twice", allowed)

    def routed(
        self,
        workload: Workload,
        registration: Resource[WorkloadRegistrationSpec],
        workloads: Mapping[str, Workload],
    ) -> Workload:
        services = self.of(ServiceSpec)
        routes: list[Route] = []
        for index, egress in enumerate(registration.spec.egress):
            name = provider_name(registration.namespace, egress.service)
            if name not in services:
                allowed = f"a Service is expected; known are {', '.join(services) or 'none'}"
                self.refuse(registration, ("egress", index, "service"), f"{egress.service!r} is given", allowed)
                continue
            routes.append(route(services[name], egress.port, workloads))
        return Workload(**{**vars(workload), "routes": tuple(routes)})


def provider_name(namespace: str, name: str) -> str:
    """``namespace/name`` of what a resource in `namespace` calls `name`."""
    return name if "/" in name else f"{namespace}/{name}"


def selects(service: Resource[ServiceSpec], namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether `service` selects a workload in `namespace` with `labels`."""
    return service.namespace == namespace and service.spec.selector.items() <= labels.items()


def route(service: Resource[ServiceSpec], port: int, workloads: Mapping[str, Workload]) -> Route:
    """The route to the first port of `service`, taken at `port`."""
    selected = (each for each in workloads.values() if selects(service, each.namespace, each.labels))
    host = f"{service.name}.{service.namespace}.svc.cluster.local"
    first = service.spec.ports[0]
    return Route(service.full_name, host, port, first.port, first.app_protocol, tuple(selected))
