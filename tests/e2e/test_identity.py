"""Identities of a running mesh: what peers are shown, what is rotated, and who may read it."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.http import ask
from support.peer import context, svid_for
from support.running import CLIENT, EGRESS_PORT, SERVER, SIDECAR_PORT, RunningMesh, eventually

from peltast.identity.svid import load_svid, save_svid

CLIENT_ID = "spiffe://cluster.local/ns/shop/sa/client"
SERVER_ID = "spiffe://cluster.local/ns/shop/sa/server"


async def shown_by_the_server(tls: ssl.SSLContext) -> x509.Certificate:
    """The certificate that the server's sidecar shows."""
    _, writer = await asyncio.open_connection(SERVER, SIDECAR_PORT, ssl=tls)
    connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
    assert connection.version() == "TLSv1.3"
    certificate = connection.getpeercert(binary_form=True)
    writer.close()
    assert certificate is not None
    return x509.load_der_x509_certificate(certificate)


async def test_an_old_svid_is_rotated_and_envoy_shows_the_new_one(folder: Path, state: Path, tmp_path: Path) -> None:
    async with RunningMesh(folder, state):
        pass
    kept = state / "sidecars" / "shop" / "server"
    old = svid_for(state, SERVER_ID, datetime.now(UTC) - timedelta(minutes=50))
    save_svid(kept, old)
    async with RunningMesh(folder, state):
        tls = context(tmp_path / "peer", svid_for(state, CLIENT_ID))

        async def shows_another() -> bool:
            return (await shown_by_the_server(tls)).serial_number != old.chain[0].serial_number

        await eventually(shows_another, "the sidecar shows a new SVID")
        new = await shown_by_the_server(tls)
        on_disk = load_svid(kept, datetime.now(UTC))
        assert on_disk is not None
        assert new == on_disk.chain[0]
        assert new.public_key() != old.chain[0].public_key(), "a key lives as long as its SVID"
        assert (await ask(CLIENT, EGRESS_PORT, "GET", "/open")).status == 200


async def test_a_sidecar_shows_an_svid_by_the_standard(folder: Path, state: Path, tmp_path: Path) -> None:
    async with RunningMesh(folder, state):
        leaf = await shown_by_the_server(context(tmp_path / "peer", svid_for(state, CLIENT_ID)))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [SERVER_ID]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    purposes = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert purposes == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(hours=1)


async def test_only_the_owner_can_read_keys_and_sockets(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state):
        assert await ask(CLIENT, EGRESS_PORT, "GET", "/open")
        keys = [
            file
            for file in state.rglob("*")
            if file.is_file() and "postgres" not in file.parts and b"PRIVATE KEY" in file.read_bytes()
        ]
        names = {str(file.relative_to(state)) for file in keys}
        expected = {"ca/root.key", "ca/intermediate.key", "control/svid.pem", "collector/svid.pem"}
        expected |= {"collector/audit/signing.key"}
        assert names == expected | {f"sidecars/shop/{name}/svid.pem" for name in ("client", "server")}
        assert {stat.S_IMODE(file.stat().st_mode) for file in keys} == {0o600}
        folders = [place for place in state.rglob("*") if place.is_dir() and "postgres" not in place.parts]
        secrets = [*state.rglob("audit/*.key"), *state.rglob("audit-keys.pb"), *state.rglob("spool/start")]
        assert {stat.S_IMODE(file.stat().st_mode) for file in secrets} == {0o600}
        open_folders = [str(place) for place in folders if place.stat().st_mode & 0o077]
        assert not open_folders
        logs = [file for file in state.rglob("*.log") if b"PRIVATE KEY" in file.read_bytes()]
        assert not logs


async def test_a_sidecar_whose_svid_has_ended_joins_again(folder: Path, state: Path) -> None:
    async with RunningMesh(folder, state) as mesh:
        kept = state / "sidecars" / "shop" / "server"
        save_svid(kept, svid_for(state, SERVER_ID, datetime.now(UTC) - timedelta(hours=2)))
        os.kill(mesh.pid_of("peltast.cli.main agent", "shop/server"), signal.SIGKILL)
        await eventually(lambda: load_svid(kept, datetime.now(UTC)), "it has an SVID again")

        async def answers() -> bool:
            return (await ask(CLIENT, EGRESS_PORT, "GET", "/open")).status == 200

        await eventually(answers, "and takes requests")
