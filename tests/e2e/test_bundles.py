"""A bundle that the control plane fetches, down to the sidecar that decides by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.bundle_server import BundleServer
from support.bundles import SECRET, manifest, signed, targz
from support.http import ask
from support.running import CLIENT, EGRESS_PORT, RunningMesh, eventually

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


def bundle(revision: str, user: str, module: bytes | None = None, key: str = SECRET) -> bytes:
    files = {
        ".manifest": manifest(revision=revision).replace(b" ", b""),
        "app/rules.rego": module or b"package app\n\nallow if data.users[input.attributes.request.http.headers.user]\n",
        "users/data.json": f'{{"{user}":true}}'.encode(),
    }
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
            server.serve(bundle("three", "mallory", module=b"package app\n\nallow if http.send({})\n"))
            (why,) = await eventually(lambda: acts(mesh, "configuration.refuse"), "and one that is not admitted")
            assert f"{server.url}/app/rules.rego:3: " in why
            assert [await status("eve"), await status("mallory")] == [200, 403], "the last good one stays"

            assert await acts(mesh, "bundle.take") == ["revision one", "revision two", "revision three"]
            changed = await acts(mesh, "configuration.changed")
            assert not any(SECRET in each for each in changed)
            assert any("+revision 'two'" in each for each in changed)


async def acts(mesh: RunningMesh, action: str) -> list[Any]:
    query = "SELECT coalesce(detail, '') AS detail FROM records WHERE action = $1 ORDER BY spool_id, sequence"
    connection = await mesh.connect()
    found = [row["detail"] for row in await connection.fetch(query, action)]
    await connection.close()
    return found
