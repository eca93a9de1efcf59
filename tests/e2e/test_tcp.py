"""Connections that carry no HTTP: decided by the peer's identity, and recorded, before the application sees any."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.json_format import ParseDict
from spiffe import SpiffeId
from support.banker import GREETING
from support.peer import TRUST_DOMAIN, context, svid_for
from support.running import CLIENT, EGRESS_PORT, MESH, SERVER, SIDECAR_PORT, RunningMesh, eventually

from peltast.authz.check.documents import check_revision
from peltast.authz.check.service import CheckService
from peltast.authz.revision import compile_revision
from peltast.cli.demo.attackers import client_context, svid_of_another_authority, svid_with_two_names
from peltast.identity.ca.store import load_or_create
from peltast.policies.snapshot import load
from peltast.policies.sources.folder import read_folder

CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"
STRANGER_ID = "spiffe://cluster.local/ns/shop/sa/stranger"
ENEMY_ID = "spiffe://cluster.local/ns/shop/sa/enemy"

POLICIES = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: customers, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/client, cluster.local/ns/shop/sa/enemy]}}]
      to: [{operation: {ports: ["8080"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: enemies, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: ["*/sa/enemy"]}}]}]
"""


ONLY_THE_SERVICE = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-name, namespace: shop}
spec:
  action: DENY
  rules: [{when: [{key: connection.sni, notValues: [server.shop.svc.cluster.local]}]}]
"""


@pytest.fixture
def folder(folder: Path, seen: Path) -> Path:
    mesh = MESH.replace("@SEEN@", str(seen)).replace("echo.py", "banker.py")
    (folder / "mesh.yaml").write_text(mesh.replace("targetPort: 8080", "targetPort: 8080, appProtocol: tcp"))
    (folder / "policies.yaml").write_text(POLICIES)
    return folder


class Customer:
    """A connection to the application, by way of sidecars."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, tls: ssl.SSLContext | None = None) -> Customer:
        """Of the client's application; of a peer without a sidecar, where `tls` is given."""
        place = (SERVER, SIDECAR_PORT) if tls else (CLIENT, EGRESS_PORT)
        return cls(*await asyncio.open_connection(*place, ssl=tls))

    async def greeting(self) -> bytes:
        """What comes first; nothing where the connection was closed."""
        try:
            return await asyncio.wait_for(self.reader.read(len(GREETING)), 15)
        except (ConnectionError, ssl.SSLError):
            return b""

    async def say(self, text: bytes) -> bytes:
        self.writer.write(text)
        return await asyncio.wait_for(self.reader.readexactly(len(text)), 15)


async def knock(tls: ssl.SSLContext | None = None) -> bytes:
    """What a connection gets that sends something at once."""
    customer = await Customer.open(tls)
    customer.writer.write(b"open up")
    try:
        return await customer.greeting()
    finally:
        customer.writer.close()


def came(seen: Path) -> tuple[int, int]:
    """Connections and bytes that the application got, but for the connection by which `peltast up` saw it listen."""
    text = seen.read_text()
    return text.count("+") - 1, text.count(".")


async def rows(mesh: RunningMesh, query: str) -> list[dict[str, Any]]:
    database = await mesh.connect()
    try:
        return [dict(row) for row in await database.fetch(query)]
    finally:
        await database.close()


async def recorded(mesh: RunningMesh, number: int) -> list[dict[str, Any]]:
    """The rows of `number` connections that are over."""

    async def are_there() -> list[dict[str, Any]] | None:
        found = await rows(mesh, "SELECT * FROM requests ORDER BY time")
        return found if len(found) == number and not any(row["interrupted"] for row in found) else None

    found: list[dict[str, Any]] = await eventually(are_there, f"{number} connections are on record")
    return found


def decided_in_python(folder: Path, row: dict[str, Any]) -> tuple[Any, ...]:
    """What the check service says of the connection that `row` is about."""
    host, _, port = row["source_address"].rpartition(":")
    attributes = {
        "source": {"principal": row["source_principal"], "address": address(host, int(port))},
        "destination": {"principal": row["destination_principal"], "address": address(SERVER, SIDECAR_PORT)},
    }
    service = CheckService()
    service.take(check_revision(compile_revision(load(read_folder(folder), "cluster.local", 1))))
    decision = service.decide(ParseDict({"attributes": attributes}, CheckRequest()))
    return ("allow" if decision.allowed else "deny", decision.reason, decision.policy, decision.rule)


def address(host: str, port: int) -> dict[str, Any]:
    return {"socketAddress": {"address": host, "portValue": port}}


async def test_an_allowed_connection_is_carried_and_on_record_at_both_ends(
    folder: Path, state: Path, seen: Path
) -> None:
    async with RunningMesh(folder, state) as mesh:
        customer = await Customer.open()
        assert await customer.greeting() == GREETING
        assert await customer.say(b"x" * 100_000) == b"x" * 100_000
        assert came(seen) == (1, 100_000)
        customer.writer.close()
        [row] = await recorded(mesh, 1)
        assert (row["effect"], row["reason"], row["policy"]) == ("allow", "allow_rule", "shop/customers")
        assert (row["source_principal"], row["destination_port"]) == (CLIENT_ID, 8080)
        assert (row["method"], row["path"], row["status"]) == (None, None, None)
        assert decided_in_python(folder, row) == ("allow", "allow_rule", "shop/customers", 0)
        assert (row["bytes_received"], row["bytes_sent"]) == (100_000, 100_000 + len(GREETING))
        assert row["duration_ns"] > 0
        [end] = await rows(mesh, "SELECT end_details FROM records WHERE kind = 'end'")
        assert end["end_details"] == "remote_close"

        async def outbound() -> list[dict[str, Any]]:
            return await rows(mesh, "SELECT * FROM records WHERE kind = 'outbound'")

        [witness] = await eventually(outbound, "the client's sidecar tells of it, too")
        assert witness["destination_principal"] == "spiffe://cluster.local/ns/shop/sa/server"
        assert (witness["bytes_received"], witness["bytes_sent"]) == (100_000, 100_000 + len(GREETING))


async def test_a_connection_may_end_one_way_before_the_other(folder: Path, state: Path, seen: Path) -> None:
    async with RunningMesh(folder, state):
        customer = await Customer.open()
        customer.writer.write(b"goodbye")
        customer.writer.write_eof()
        assert await asyncio.wait_for(customer.reader.read(), 15) == GREETING + b"goodbye"
        customer.writer.close()
        assert came(seen) == (1, len(b"goodbye"))


async def test_a_denied_connection_is_closed_before_the_application_sees_any(
    folder: Path, state: Path, seen: Path, tmp_path: Path
) -> None:
    async with RunningMesh(folder, state, "--concurrency", "1") as mesh:
        stranger = context(tmp_path / "stranger", svid_for(state, STRANGER_ID))
        enemy = context(tmp_path / "enemy", svid_for(state, ENEMY_ID))
        authority = load_or_create(state / "ca", TRUST_DOMAIN, datetime.now(UTC))
        both = client_context(svid_with_two_names(authority, SpiffeId(CLIENT_ID), SpiffeId(STRANGER_ID)))
        expired = context(tmp_path / "expired", svid_for(state, CLIENT_ID, datetime.now(UTC) - timedelta(hours=2)))
        foreign = client_context(svid_of_another_authority(SpiffeId(CLIENT_ID)))
        for tls in (stranger, enemy, both, expired, foreign, client_context(None), stranger):
            assert await knock(tls) == b""
        found = await recorded(mesh, 7)
        assert [row["kind"] for row in found] == [*["decision"] * 3, *["refusal"] * 3, "decision"]
        assert [(row["effect"], row["reason"], row["policy"], row["source_principal"]) for row in found] == [
            ("deny", "no_allow_rule", None, STRANGER_ID),
            ("deny", "deny_rule", "shop/enemies", ENEMY_ID),
            ("deny", "peer_uri_sans", None, f"{CLIENT_ID},{STRANGER_ID}"),
            ("deny", "certificate_refused", None, CLIENT_ID),
            ("deny", "certificate_refused", None, CLIENT_ID),
            ("deny", "no_certificate", None, None),
            ("deny", "no_allow_rule", None, STRANGER_ID),
        ]
        assert [row["decided_by"] for row in found if row["kind"] == "decision"] == [*["engine"] * 3, "cache"]
        line = "deny  shop/enemy → shop/server connection shop/enemies rule 0 deny_rule"
        await eventually(lambda: line in mesh.output, f"the feed has it: {mesh.output}")
        ends = await rows(mesh, "SELECT end_details FROM records WHERE kind = 'end' ORDER BY sequence")
        assert {row["end_details"] for row in ends} == {"no_allow_rule", "deny_rule", "peer_uri_sans"}
        assert came(seen) == (0, 0)
        for row in found:
            if row["reason"] in ("no_allow_rule", "deny_rule"):
                assert decided_in_python(folder, row) == (row["effect"], row["reason"], row["policy"], row["rule"])
        assert await knock(context(tmp_path / "client", svid_for(state, CLIENT_ID))) == GREETING


async def test_a_changed_policy_decides_the_next_connection_and_drops_none(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    async with RunningMesh(folder, state):
        stranger = context(tmp_path / "stranger", svid_for(state, STRANGER_ID))
        customer = await Customer.open()
        assert await customer.greeting() == GREETING
        assert await knock(stranger) == b""
        (folder / "policies.yaml").write_text(POLICIES.replace("sa/client,", "sa/client, '*/sa/stranger',"))

        async def is_let_in() -> bool:
            return await knock(stranger) == GREETING

        await eventually(is_let_in, "the new policy is in force")
        assert await customer.say(b"still here") == b"still here"
        customer.writer.close()


async def test_a_changed_policy_ends_what_it_does_not_allow(folder: Path, state: Path, tmp_path: Path) -> None:
    let_in = POLICIES.replace("sa/client,", "sa/client, '*/sa/stranger',")
    (folder / "policies.yaml").write_text(let_in)
    async with RunningMesh(folder, state) as mesh:
        customer, stranger = (
            await Customer.open(),
            await Customer.open(context(tmp_path / "s", svid_for(state, STRANGER_ID))),
        )
        assert (await customer.greeting(), await stranger.greeting()) == (GREETING, GREETING)
        (folder / "policies.yaml").write_text(POLICIES)
        begun = time.monotonic()
        assert await stranger.greeting() == b""
        assert time.monotonic() - begun < 2
        assert await customer.say(b"still here") == b"still here"
        ended_row = "source_principal LIKE '%/stranger' AND NOT interrupted"
        query = f"SELECT ended_reason, ended_policy FROM requests WHERE {ended_row}"
        [ended] = await eventually(lambda: rows(mesh, query), "the end is on record")
        assert ended == {"ended_reason": "no_allow_rule", "ended_policy": None}
        customer.writer.close()


async def test_a_full_spool_denies_connections_until_it_has_room_again(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    async with RunningMesh(folder, state, "--concurrency", "1", "--spool-bytes", str(1 << 20)) as mesh:
        tls = context(tmp_path / "client", svid_for(state, CLIENT_ID))
        collector = mesh.pid_of("peltast.cli.main collector")
        os.kill(collector, signal.SIGSTOP)
        allowed = 0
        while await knock(tls):
            allowed += 1
            assert allowed < 10_000, "1 MiB holds fewer records than that"
        os.kill(collector, signal.SIGCONT)

        async def goes_on() -> bool:
            return await knock(tls) == GREETING

        await eventually(goes_on, "connections go on once records are shipped")
        allowed += 1

        async def all_are_there() -> bool:
            query = "SELECT reason, count(*) FROM requests WHERE NOT interrupted GROUP BY reason"
            counts = Counter({row["reason"]: row["count"] for row in await rows(mesh, query)})
            return counts["allow_rule"] == allowed and counts["spool_unavailable"] >= 1

        await eventually(all_are_there, f"{allowed} connections are on record, and those that were denied")


@pytest.mark.parametrize(("protocol", "denied"), [("tcp", b""), ("http", b"HTTP/1.1 403")])
async def test_the_server_name_that_is_asked_for_decides(
    folder: Path, state: Path, tmp_path: Path, protocol: str, denied: bytes
) -> None:
    (folder / "policies.yaml").write_text(ONLY_THE_SERVICE)
    mesh_file = folder / "mesh.yaml"
    mesh_file.write_text(mesh_file.read_text().replace("appProtocol: tcp", f"appProtocol: {protocol}"))
    async with RunningMesh(folder, state):
        tls = context(tmp_path / "client", svid_for(state, CLIENT_ID))
        for name, is_let_in in [("server.shop.svc.cluster.local", True), ("other.example", False)]:
            reader, writer = await asyncio.open_connection(SERVER, SIDECAR_PORT, ssl=tls, server_hostname=name)
            writer.write(b"GET / HTTP/1.1\r\nhost: server\r\n\r\n")
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(len("HTTP/1.1 403")), 15)
            assert (answer != denied) is is_let_in, name
            writer.close()
