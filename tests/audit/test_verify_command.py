"""`peltast audit verify` and `peltast audit prove`, as operators run them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from support.starts import KEYS, trust

from peltast.audit.checkpoint import Signer
from peltast.audit.collector.checkpoints import Publisher, sign_tree
from peltast.audit.sinks import Folder
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE
from peltast.cli.signing import load_or_create_signer, verifier_key_file
from peltast.identity.certificates import pem


@dataclass
class Commands:
    state: Path
    database: str

    async def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "peltast.cli.main", "audit", *arguments, "--state", str(self.state)]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)

    async def on_store(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await self.run(*arguments, "--database", self.database)


@pytest.fixture
async def commands(postgres: EmbeddedPostgres, stored: Any, tmp_path: Path) -> Commands:
    """Over a store of four records whose tree is signed and published."""
    state = tmp_path / "state"
    signer = load_or_create_signer(state, "mesh.example")
    async with asyncpg.create_pool(postgres.url(COLLECTOR_ROLE), min_size=0, max_size=1) as pool:
        await sign_tree(pool, signer)
        await Publisher("folder", Folder(state / "checkpoints"), tmp_path / "place").catch_up(pool)
    return Commands(state, postgres.url(AUDITOR_ROLE))


async def test_a_sound_log(commands: Commands) -> None:
    told = await commands.on_store("verify")
    assert (told.returncode, told.stderr) == (0, "")
    assert "4 records in 1 spools; 2 checkpoints of the store and folder:" in told.stdout
    assert told.stdout.endswith("Everything is as it was recorded.\n")


async def test_what_was_not_checked_is_told_and_can_be(commands: Commands, tmp_path: Path) -> None:
    told = await commands.on_store("verify")
    assert "Whose the spools are was not checked: that takes --trust-bundle.\n" in told.stdout
    assert "The codes of records were not compared: that takes --keys.\n" in told.stdout
    bundle, keys = tmp_path / "root.pem", tmp_path / "keys"
    bundle.write_bytes(b"".join(map(pem, trust().roots)))
    keys.mkdir()
    (keys / "sealing.key").write_bytes(KEYS.sealing.private_bytes_raw())
    given = ("--trust-bundle", str(bundle), "--keys", str(keys))
    told = await commands.on_store("verify", *given, "--output", "json")
    said = json.loads(told.stdout)
    assert (told.returncode, said["sound"], said["writers_checked"], said["codes_checked"]) == (0, True, True, True)
    (keys / "sealing.key").write_bytes(b"short")
    told = await commands.on_store("verify", *given)
    assert (told.returncode, "a key of 32 is expected" in told.stderr) == (1, True)


async def test_a_log_that_was_altered(commands: Commands, owner: asyncpg.Connection, stored: Any) -> None:
    await owner.execute("UPDATE records SET path = '/forged' WHERE sequence = 3")
    told = await commands.on_store("verify")
    assert told.returncode == 1
    name = f"{stored.id.hex()}:3"
    assert f"record {name}: the row was altered: path is not as in the record" in told.stderr
    assert f"The first bad record is {name}." in told.stderr


async def test_programs_are_told_all_of_it(commands: Commands, owner: asyncpg.Connection, stored: Any) -> None:
    await owner.execute("DELETE FROM records WHERE sequence = 3")
    told = await commands.on_store("verify", "--output", "json")
    assert told.returncode == 1
    said = json.loads(told.stdout)
    assert (said["sound"], said["spools"], said["records"], said["checkpoints"]) == (False, 1, 3, 2)
    assert said["findings"][0] == {
        "what": "the record is missing; 4 follows",
        "spool": stored.id.hex(),
        "sequence": 3,
        "leaf": None,
    }
    assert [spool["spool"] for spool in said["open"]] == [stored.id.hex()]


async def test_another_public_key_vouches_for_nothing(commands: Commands, tmp_path: Path) -> None:
    other = Signer("peltast.dev/audit/mesh.example", Ed25519PrivateKey.generate())
    file = tmp_path / "other.pub"
    file.write_text(str(other.verifier_key))
    told = await commands.on_store("verify", "--public-key", str(file))
    assert told.returncode == 1
    assert "is forged: no signature of it is by the key" in told.stderr


async def test_a_proof_is_checked_without_the_store(commands: Commands, stored: Any, tmp_path: Path) -> None:
    told = await commands.on_store("prove", f"{stored.id.hex()}:2")
    assert told.returncode == 0, told.stderr
    file, key = tmp_path / "proof.json", str(verifier_key_file(commands.state))
    file.write_text(told.stdout)
    checked = await commands.run("verify", "--proof", str(file), "--public-key", key)
    assert checked.returncode == 0, checked.stderr
    assert "Proved: the record is leaf 1 of 4 of peltast.dev/audit/mesh.example." in checked.stdout
    assert "  path: /a\n" in checked.stdout
    file.write_text(told.stdout.replace('"leaf": 1', '"leaf": 2'))
    refused = await commands.run("verify", "--proof", str(file), "--public-key", key)
    assert refused.returncode == 1
    assert "the record is not in the tree that the checkpoint signs" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (("prove", "xyz"), 2, "is not SPOOL:SEQUENCE"),
        (("prove", "00:1"), 1, "there is no record 00:1"),
        (("verify", "--checkpoints", "ftp://x"), 2, "folder:PATH and s3://BUCKET/PREFIX are"),
        (("verify", "--checkpoints", "folder:/missing"), 1, "/missing"),
        (("verify", "--public-key", "/dev/null"), 1, "this is not an Ed25519 verifier key"),
    ],
)
async def test_what_is_wrong_with_a_question_is_said(
    commands: Commands, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    told = await commands.on_store(*arguments)
    assert told.returncode == code, told.stderr
    assert problem in " ".join(told.stderr.replace("│", " ").split())


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first = load_or_create_signer(tmp_path, "mesh.example")
    assert load_or_create_signer(tmp_path, "mesh.example").verifier_key == first.verifier_key
    public = verifier_key_file(tmp_path)
    assert public.read_text() == f"{first.verifier_key}\n"
    assert public.with_name("signing.key").stat().st_mode & 0o777 == 0o600
