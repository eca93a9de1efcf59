"""MeshConfig in a running mesh: Envoy, the engine in it and the engine in Python see one path and one client."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.http import Connection
from support.peer import context, svid_for
from support.running import SERVER, SIDECAR_PORT, RunningMesh

from peltast.authz._engine import Decider, KeySets, Program, Request, Revocations, normalize_path
from peltast.authz.revision import compile_revision
from peltast.authz.revocations import NO_REVOCATIONS
from peltast.policies.snapshot import load
from peltast.policies.sources.folder import read_folder

PEER = "spiffe://cluster.local/ns/shop/sa/client"
REQUESTS = 600
PIECES = ["/", "/", "//", ".", "..", "a", "b", "%2e", "%2E%2e", "%2f", "%5C", "\\", ";x=1", "%41", "%252f", "%20"]
PIECES += ["..;x\\b", "..;x%5cb", "..;x%2fb"]
FORWARDED = [None, "203.0.113.9", "6.6.6.6, 203.0.113.9", "203.0.113.9, 6.6.6.6", "203.0.113.9,", "unknown"]

CONFIGURATION = """
apiVersion: peltast.dev/v1
kind: MeshConfig
metadata: {name: mesh, namespace: istio-system}
spec:
  pathNormalization: {normalization: @MODE@}
  defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec:
  action: DENY
  targetRefs: [{kind: Service, group: "", name: server}]
  rules:
    - to: [{operation: {paths: ["/a/*", "/b", "/"]}}]
    - from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]
"""


@pytest.mark.parametrize("mode", ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"])
async def test_what_is_decided_about_is_what_the_application_gets(
    folder: Path, state: Path, tmp_path: Path, mode: str
) -> None:
    (folder / "policies.yaml").write_text(CONFIGURATION.replace("@MODE@", mode))
    choose = random.Random(20261121)
    revision = compile_revision(load(read_folder(folder), "cluster.local", 1))
    program, keys = (Program.load(revision.programs["shop/server"]), KeySets.load(revision.keys["shop/server"]))
    decider, none, outcomes = Decider(), Revocations.load(NO_REVOCATIONS), set()
    async with RunningMesh(folder, state):
        connection = await Connection.open(SERVER, SIDECAR_PORT, context(tmp_path / "peer", svid_for(state, PEER)))
        for _ in range(REQUESTS):
            path = "/" + "".join(choose.choices(PIECES, k=choose.randint(0, 6)))
            forwarded = choose.choice(FORWARDED)
            headers = {"x-forwarded-for": forwarded} if forwarded is not None else {}
            response = await connection.ask("GET", path, headers)
            decision = decider.decide(program, keys, none, request(path, headers), 0)
            assert (response.status == 200, response.status) == (decision.allowed, decision.status), (path, forwarded)
            outcomes.add((decision.reason, decision.rule))
            if response.status == 200:
                seen = json.loads(response.body)
                assert seen["path"].encode() == normalize_path(program, path.encode()), path
                assert seen["headers"].get("x-forwarded-for") == forwarded, "the sidecar adds nothing"
        connection.close()
    assert outcomes == {("no_allow_policy", None), ("deny_rule", 0), ("deny_rule", 1)}


def request(path: str, headers: dict[str, str]) -> Request:
    return Request(
        method="GET", host=SERVER, path=path, scheme="https", protocol="HTTP/1.1", headers=list(headers.items()),
        source_principal=PEER, source_ip="127.0.0.1", destination_ip=SERVER, destination_port=SIDECAR_PORT,
    )  # fmt: skip
