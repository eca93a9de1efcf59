"""A bundle that the control plane fetches, down to the sidecar that decides by it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from support.bundle_server import BundleServer
from support.bundles import SECRET, bomb, signed, targz
from support.http import ask
from support.running import CLIENT, DENY, EGRESS_PORT, RunningMesh, eventually

from peltast.policies.sources.archive import MAX_BYTES

POLICY = """
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: rules, namespace: shop}
spec:
  entrypoint: data.app.allow
  bundle:
    url: @URL@
    polling: {minDelay: 1s, maxDelay: 2s, longPollingTimeout: 60s}
    signing: {keys: {k: {algorithm: HS256, key: "@SECRET@"}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: rules, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: CUSTOM
  provider: {name: rules}
  rules: [{}]
"""


def bundle(revision: str, user: str, module: bytes | None = None, key: str = SECRET, **more: Any) -> bytes:
    files = {
        ".manifest": json.dumps({"revision": revision, **more}, separators=(",", ":"), sort_keys=True).encode(),
        "app/rules.rego": module or b"package app\n\nallow if data.users[input.attributes.request.http.headers.user]\n",
        "users/data.json": f'{{"{user}":true}}'.encode(),
    }
    return sealed(files, key)


def sealed(files: dict[str, bytes], key: str = SECRET) -> bytes:
    return targz(signed(files, key))


async def status(user: str) -> int:
    return (await ask(CLIENT, EGRESS_PORT, "GET", "/open", {"user": user})).status


async def test_a_bundle_decides_another_replaces_it_and_a_bad_one_does_not(folder: Path, state: Path) -> None:
    async with BundleServer(bundle("one", "ada"), long_polls=True) as server:
        policy = POLICY.replace("@URL@", server.url).replace("@SECRET@", SECRET)
        (folder / "rules.yaml").write_text(policy)
        async with RunningMesh(folder, state, "--concurrency", "1") as mesh:
            assert [await status("ada"), await status("eve")] == [200, 403]

            server.serve(bundle("two", "eve"))

            async def eve_is_let_in() -> bool:
                return await status("eve") == 200

            await eventually(eve_is_let_in, "another bundle is at the sidecar")
            assert await status("ada") == 403

            server.serve(bundle("forged", "mallory", key=SECRET + "!"))
            (why,) = await eventually(lambda: acts(mesh, "bundle.refuse"), "a bundle by another key is refused")
            assert "Signature verification failed" in why
            assert [await status("eve"), await status("mallory")] == [200, 403], "the last good one stays"

            assert await acts(mesh, "bundle.take") == ["revision one", "revision two"]
            changed = await acts(mesh, "configuration.changed")
            assert not any(SECRET in each for each in changed)
            assert any("+revision 'two'" in each for each in changed)


ROOTS = ["app", "users"]
BAD = {
    "another key": (bundle("bad", "mallory", key=SECRET + "!"), "Signature verification failed"),
    "not signed": (targz({"app/rules.rego": b"package app\n\nallow := true\n"}), ".signatures.json: is missing"),
    "escape": (targz({"../app/rules.rego": b"package app"}), "the path leads out of the bundle"),
    "zip bomb": (bomb(MAX_BYTES + 1), "the archive holds more than 128 MiB"),
    "missing root": (sealed({".manifest": b'{"roots":["other"]}', "app/rules.rego": b"package app"}), "is in none of"),
    "conflict": (sealed({"own/rules.rego": b"package own"}), "its package is also of the bundle's root ''"),
    "not admitted": (
        bundle("bad", "mallory", b"package app\n\nallow if http.send({})\n", roots=ROOTS),
        "app/rules.rego:3: the built-in http.send is outside",
    ),
}
OWN = "  module: |\n    package own\n\n    used := true\n"
DENY_ALL = DENY.replace("[/open/closed]", "['*']")


async def test_a_bad_bundle_blocks_no_other_change_and_is_not_what_a_restart_begins_with(
    folder: Path, state: Path
) -> None:
    async with BundleServer(bundle("good", "ada", roots=ROOTS)) as server:
        policy = (
            POLICY.replace("@URL@", server.url).replace("@SECRET@", SECRET).replace("  bundle:\n", f"{OWN}  bundle:\n")
        )
        (folder / "rules.yaml").write_text(policy)
        async with RunningMesh(folder, state, "--concurrency", "1") as mesh:
            assert [await status("ada"), await status("mallory")] == [200, 403]
            for bad, says in BAD.values():
                server.serve(bad)

                async def is_refused(says: str = says) -> bool:
                    return any(says in why for why in await acts(mesh, "bundle.refuse"))

                await eventually(is_refused, says)
            assert [await status("ada"), await status("mallory")] == [200, 403]
            assert await acts(mesh, "bundle.take") == ["revision good"]
            assert await acts(mesh, "configuration.refuse") == []

            (folder / "deny.yaml").write_text(DENY_ALL)

            async def is_closed() -> bool:
                return await status("ada") == 403

            await eventually(is_closed, "another policy takes effect beside the bad bundle")
            os.kill(mesh.pid_of("control-plane"), signal.SIGKILL)
            (folder / "deny.yaml").unlink()

            async def is_open() -> bool:
                return await status("ada") == 200

            await eventually(is_open, "the restarted control plane begins with the good bundle")
            assert await status("mallory") == 403
            assert await acts(mesh, "configuration.refuse") == []


async def acts(mesh: RunningMesh, action: str) -> list[Any]:
    query = "SELECT coalesce(detail, '') AS detail FROM records WHERE action = $1 ORDER BY spool_id, sequence"
    connection = await mesh.connect()
    found = [row["detail"] for row in await connection.fetch(query, action)]
    await connection.close()
    return found
