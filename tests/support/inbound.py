"""An inbound sidecar whose policies come by ECDS from files, and beside it Envoy's own filters for the same policies.

Connections are kept, and one thread asks on many of them in turns, so that thousands of requests take seconds.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_components_pb2 import Route
from envoy.extensions.filters.http.jwt_authn.v3.config_pb2 import JwtAuthentication, PerRouteConfig
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC, RBACPerRoute
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
)
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf.json_format import ParseDict
from support import rbac
from support.envoys import Envoys, backend, manager_of, repack
from support.generated import ADDRESS, CALLERS, NAMESPACE, PORTS, Caller, PolicySet
from support.peer import context
from support.reference import Asked, Outcome
from support.starts import spool_of_worker

from peltast.audit.spool import SpoolReader
from peltast.authz._engine import KeySets, Program, first_link, scan_frames, verify_frames
from peltast.authz.revision import Revision
from peltast.policies.kinds.mesh import Normalization
from peltast.proxy.xds.compile import application_cluster, inbound_listener
from peltast.proxy.xds.module import KEYS, PROGRAM, REVOCATIONS, filter_config

WORKLOAD = f"{NAMESPACE}/catalog"
DEADLINE_SECONDS = 20.0
SET_HEADER = "x-policy-set"
"""Names the route, and so the policies, to Envoy's own filters."""


class Inbound:
    """The Envoy that runs. Make it by :func:`running`."""

    def __init__(self, folder: Path, envoys: Envoys, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._spool = Spool(folder / "spool")
        self._numbers = itertools.count(1)
        contexts = {
            caller.principal: context(folder / f"peer-{number}", envoys.svid(caller.principal))
            for number, caller in enumerate(CALLERS)
        }
        self._ours = Client(PORTS, contexts)
        self._rbac = Client(rbac.PORTS, contexts)

    def take(self, revision: Revision) -> None:
        """Decides by `revision` from now on: what was asked last is on record as decided by it."""
        self._sidecar.write(revision)
        program = bytes.fromhex(Program.load(revision.programs[WORKLOAD]).hash)
        keys = bytes.fromhex(KeySets.load(revision.keys[WORKLOAD]).hash)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                (fields,) = self._recorded([(CALLERS[0], Asked())])
            except ConnectionResetError:  # let through by the policies before, and ended by these
                self._ours.connect(CALLERS[0])
            else:
                if (fields["program"], fields["keys"]) == (program, keys):
                    return
            assert time.monotonic() < deadline, "the policies do not arrive"

    def decide(self, asked: Sequence[tuple[Caller, Asked]]) -> list[Outcome]:
        """What our filter decides, by its records; the answers must agree."""
        return [
            Outcome(
                fields["effect"] == b"allow",
                fields["reason"].decode(),
                fields["policy"].decode() if "policy" in fields else None,
                fields.get("rule"),
            )
            for fields in self._recorded(asked)
        ]

    def decide_by_rbac(self, number: int, asked: Sequence[tuple[Caller, Asked]]) -> list[bool]:
        """Whether Envoy's own filters allow, by set `number` of those that the Envoy was started with."""
        requests = [(caller, each, encode(each, (SET_HEADER, str(number)))) for caller, each in asked]
        return [status == 200 for status in self._rbac.ask(requests)]

    def _recorded(self, asked: Sequence[tuple[Caller, Asked]]) -> list[dict[str, Any]]:
        ids = [f"request-{next(self._numbers)}" for _ in asked]
        requests = [
            (caller, each, encode(each, ("x-request-id", request_id)))
            for (caller, each), request_id in zip(asked, ids, strict=True)
        ]
        statuses = self._ours.ask(requests)
        records = self._spool.decisions()
        found = [records[request_id] for request_id in ids]
        assert [fields["status"] for fields in found] == statuses
        return found


@contextlib.contextmanager
def running(folder: Path, envoys: Envoys, name: str, sets: Sequence[PolicySet]) -> Iterator[Inbound]:
    """An Envoy that is given the policies of one of `sets` after the other."""
    revision = sets[0].compile()
    workload = revision.snapshot.workloads[WORKLOAD]
    place = folder / name
    sidecar = Sidecar(folder / f"{name}-ecds", envoys.module)
    sidecar.write(revision)
    inbound = [inbound_listener(workload, port, envoys.module, Normalization.MERGE_SLASHES) for port in workload.ports]
    theirs = [_with_rbac(copy.deepcopy(listener), sets) for listener in inbound]
    for listener in inbound:
        repack(manager_of(listener), sidecar.by_files)
    listeners = [*inbound, *theirs, *backend(ADDRESS, list(PORTS))]
    clusters = [application_cluster(workload, port) for port in workload.ports]
    with envoys.running(name, listeners, clusters, svid=workload.principal):
        yield Inbound(place, envoys, sidecar)


class Sidecar:
    """The files in which an Envoy finds its program, key sets and revocations."""

    def __init__(self, folder: Path, module: str) -> None:
        self._folder, self._module = folder, module
        folder.mkdir()

    def write(self, revision: Revision) -> None:
        documents = {
            KEYS: revision.keys[WORKLOAD],
            REVOCATIONS: revision.revocations,
            PROGRAM: revision.programs[WORKLOAD],
        }
        for name, document in documents.items():
            response = DiscoveryResponse(version_info=str(time.monotonic_ns()))
            response.resources.add().Pack(filter_config(self._module, name, document))
            fresh = self._folder / "fresh"
            fresh.write_bytes(response.SerializeToString())
            fresh.replace(self._folder / f"{name}.pb")

    def by_files(self, manager: HttpConnectionManager) -> None:
        """Has the filters of `manager` configured by the files instead of by ADS."""
        for http_filter in manager.http_filters:
            if http_filter.HasField("config_discovery"):
                source = http_filter.config_discovery.config_source
                source.path_config_source.path = str(self._folder / f"{http_filter.name}.pb")


class Spool:
    """The records of an Envoy's one worker, as they come."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._reader: SpoolReader | None = None
        self._sequence, self._link = 0, first_link()

    def decisions(self) -> dict[str, dict[str, Any]]:
        """The decisions since the last time, by their requests' ids. The chain is verified."""
        if self._reader is None:
            self._reader = SpoolReader(spool_of_worker(self._root, 0))
        decisions = {}
        while frames := self._reader.read():
            records, self._sequence, self._link = verify_frames(self._sequence, self._link, frames)
            scanned = scan_frames(frames)
            assert scanned is not None
            self._reader.acknowledge(scanned[1])
            for record in records:
                if record.kind == "decision":
                    decisions[bytes(record.fields["request_id"]).decode()] = record.fields
        return decisions


# Envoy's own filters --------------------------------------------------------------------------------------------------


def _with_rbac(listener: Listener, sets: Sequence[PolicySet]) -> Listener:
    """`listener` on the next port, with Envoy's filters in the place of ours, and a route for each of `sets`."""
    listener.name = f"rbac_{listener.name}"
    address = listener.address.socket_address
    address.port_value = rbac.PORTS[{port: target for target, port in PORTS.items()}[address.port_value]]
    del listener.access_log[:], listener.filter_chains[0].filters[0]

    def change(manager: HttpConnectionManager) -> None:
        router = manager.http_filters[-1]
        del manager.http_filters[:], manager.access_log[:]
        for name, kind, value in (
            ("jwt", JwtAuthentication, rbac.jwt_authn()),
            ("deny", RBAC, {}),
            ("allow", RBAC, {}),
        ):
            manager.http_filters.append(ParseDict({"name": name, "typed_config": _typed(kind, value)}, HttpFilter()))
        manager.http_filters.append(router)
        host = manager.route_config.virtual_hosts[0]
        del host.routes[:]
        host.routes.extend(ParseDict(route, Route()) for route in _routes(sets))

    repack(manager_of(listener), change)
    return listener


def _typed(kind: Any, value: dict[str, Any]) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/{kind.DESCRIPTOR.full_name}", **value}


def _routes(sets: Sequence[PolicySet]) -> Iterator[dict[str, Any]]:
    for number, policies in enumerate(sets):
        with contextlib.suppress(rbac.NotExpressible):
            deny, allow = rbac.filters_of(policies)
            header = {"name": SET_HEADER, "string_match": {"exact": str(number)}}
            yield {
                "match": {"prefix": "/", "headers": [header]},
                "direct_response": {"status": 200},
                "typed_per_filter_config": {
                    "jwt": _typed(PerRouteConfig, rbac.requirement(policies)),
                    "deny": _typed(RBACPerRoute, {"rbac": deny}),
                    "allow": _typed(RBACPerRoute, {"rbac": allow}),
                },
            }


# HTTP -----------------------------------------------------------------------------------------------------------------


def encode(asked: Asked, *more: tuple[str, str]) -> bytes:
    """`asked` on the wire."""
    token = [("authorization", f"Bearer {asked.token.text}")] if asked.token else []
    headers = [("host", asked.host), *asked.headers, *token, *more, ("content-length", "0")]
    lines = [f"{asked.method} {asked.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode()


class Client:
    """Each caller's connections to one kind of listener; one request at a time is under way on each.

    Not pipelined: Envoy ends a connection on which more than two of its own answers wait.
    """

    LANES = 3

    def __init__(self, ports: Mapping[int, int], contexts: Mapping[str, ssl.SSLContext]) -> None:
        self._ports, self._contexts = ports, contexts
        self._lanes: dict[Caller, list[Lane]] = {}
        for caller in CALLERS:
            self.connect(caller)

    def connect(self, caller: Caller) -> None:
        """Makes the connections of `caller`, instead of any that it had."""
        port, tls = self._ports[caller.port], self._contexts[caller.principal]
        self._lanes[caller] = [Lane(caller, port, tls) for _ in range(self.LANES)]

    def ask(self, requests: Sequence[tuple[Caller, Asked, bytes]]) -> list[int]:
        """The status of each answer."""
        waiting: dict[Lane, list[int]] = {lane: [] for lanes in self._lanes.values() for lane in lanes}
        for place, (caller, _, _) in enumerate(requests):
            waiting[min(self._lanes[caller], key=lambda lane: len(waiting[lane]))].append(place)
        statuses = [0] * len(requests)
        while under_way := {lane: places.pop() for lane, places in waiting.items() if places}:
            for lane, place in under_way.items():
                lane.send(requests[place][2])
            for lane, place in under_way.items():
                statuses[place] = lane.read(bodiless=requests[place][1].method == "HEAD")
        return statuses


class Lane:
    """A connection."""

    def __init__(self, caller: Caller, port: int, tls: ssl.SSLContext) -> None:
        plain = socket.create_connection((ADDRESS, port), DEADLINE_SECONDS, (caller.source_ip, 0))
        self._socket = tls.wrap_socket(plain, server_hostname=caller.sni)
        self._file = self._socket.makefile("rb")

    def send(self, request: bytes) -> None:
        self._socket.sendall(request)

    def read(self, *, bodiless: bool) -> int:
        """Reads one answer; gives its status.

        Raises:
            ConnectionResetError: there is none.
        """
        if not (line := self._file.readline()):
            raise ConnectionResetError
        status = int(line.split()[1])
        length = 0
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if not bodiless:
            self._file.read(length)
        return status
