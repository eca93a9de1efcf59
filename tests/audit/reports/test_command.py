"""`peltast audit report` and `peltast audit verify-report`, as they are typed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support.running import PELTAST
from typer.testing import CliRunner

from peltast.audit.checkpoint import VerifierKey
from peltast.audit.reports.kinds import KINDS
from peltast.audit.store.embedded import EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE
from peltast.cli.main import app

from .conftest import GOLDEN, Log

SINCE, UNTIL = "2026-09-21T12:00:00Z", "2026-09-21T13:00:00Z"
NAME = "peltast.dev/audit/cluster.local"


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: bytes
    stderr: bytes


Run = Callable[..., Ended]


def peltast(*arguments: object) -> Ended:
    """The command in this process: starting one takes as long as all else together."""
    result = CliRunner().invoke(app, ["audit", *map(str, arguments)])
    return Ended(result.exit_code, result.stdout_bytes, result.stderr_bytes)


@pytest.fixture
def report(recorded: Log, postgres: EmbeddedPostgres) -> Run:
    """Makes a report of the recorded range."""
    database = postgres.url(AUDITOR_ROLE)
    return lambda *arguments: peltast("report", "--database", database, "--since", SINCE, "--until", UNTIL, *arguments)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A state with a collector's key."""
    folder = tmp_path / "state" / "collector" / "audit"
    folder.mkdir(parents=True)
    key = Ed25519PrivateKey.generate()
    (folder / "signing.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "signing.pub").write_text(f"{VerifierKey(NAME, key.public_key().public_bytes_raw())}\n")
    return tmp_path / "state"


def test_a_report_comes_out_of_a_process(recorded: Log, postgres: EmbeddedPostgres) -> None:
    range_of_time = ["--since", SINCE, "--until", UNTIL, "--database", postgres.url(AUDITOR_ROLE)]
    command = [*PELTAST, "audit", "report", "access", *range_of_time]
    result = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert result.stdout == (GOLDEN / "access.txt").read_bytes()


@pytest.mark.parametrize("form", ["table", "csv", "json", "html"])
def test_a_report_is_written_to_standard_output(report: Run, form: str) -> None:
    result = report("access", "--format", form)
    assert result.returncode == 0, result.stderr
    suffix = "txt" if form == "table" else form
    assert result.stdout == (GOLDEN / f"access.{suffix}").read_bytes()


def test_a_report_compares_with_a_folder(report: Run, tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    result = report("matrix", GOLDEN / "configuration", "--format", "json", "--out", file)
    assert result.returncode == 0, result.stderr
    assert file.read_bytes() == (GOLDEN / "matrix.json").read_bytes()
    assert b"rests on checkpoint of tree size 28, root bbbb" in result.stdout


def test_one_table_is_chosen(report: Run) -> None:
    result = report("access", "--format", "csv", "--table", "unrecorded")
    assert result.stdout == b"destination,requests\r\nspiffe://cluster.local/ns/bookshop/sa/ledger,7\r\n"


def test_every_report_is_listed() -> None:
    listed = peltast("report", "--list")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.decode().splitlines()] == list(KINDS)


def test_a_range_may_begin_so_long_ago(recorded: Log, postgres: EmbeddedPostgres) -> None:
    result = peltast("report", "access", "--since", "2w", "--format", "json", "--database", postgres.url(AUDITOR_ROLE))
    said = json.loads(result.stdout)
    assert said["since"] < said["until"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nonsense"], 2, "one of access, denials"),
        (["access", "--since", "yesterday"], 2, "a time such as"),
        (["access", "--format", "pdf"], 2, "pdf"),
        (["matrix"], 1, "give its folder"),
        (["access", GOLDEN / "configuration"], 1, "compares with no configuration"),
        (["access", "--table", "none"], 1, "has no table 'none', but access, identities, unrecorded"),
        (["access", "--sign"], 1, "--sign needs --out"),
        (["access", "--out", "/nonexistent/x"], 1, "No such file"),
    ],
)
def test_what_cannot_be_done_is_told(report: Run, arguments: list[object], code: int, says: str) -> None:
    result = report(*arguments)
    assert (result.returncode, result.stdout) == (code, b"")
    assert says in " ".join(result.stderr.decode().replace("│", " ").split())


def test_a_range_ends_after_it_begins(recorded: Log, postgres: EmbeddedPostgres) -> None:
    database = postgres.url(AUDITOR_ROLE)
    result = peltast("report", "access", "--since", UNTIL, "--until", SINCE, "--database", database)
    assert result.returncode == 1
    assert b"before it begins" in result.stderr


def test_a_store_that_is_away_is_told(tmp_path: Path) -> None:
    result = peltast("report", "access", "--state", tmp_path)
    assert result.returncode == 1
    assert b"error" in result.stderr
    assert b"Traceback" not in result.stderr


def test_a_broken_configuration_is_told(report: Run, tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("kind: Nonsense")
    result = report("unused", tmp_path)
    assert result.returncode == 1
    assert b"mesh.yaml" in result.stderr


# Signatures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet", "html"])
def test_a_signed_report_verifies_until_it_is_altered(report: Run, keys: Path, tmp_path: Path, form: str) -> None:
    file = tmp_path / "a report"
    signed = report("access", "--format", form, "--out", file, "--sign", "--state", keys)
    assert signed.returncode == 0, signed.stderr
    sound = peltast("verify-report", file, "--state", keys)
    assert sound.returncode == 0, sound.stderr
    assert b"report access" in sound.stdout
    assert b"checkpoint 28 u7u7" in sound.stdout
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    altered = peltast("verify-report", file, "--key", keys / "collector" / "audit" / "signing.pub")
    assert (altered.returncode, altered.stdout) == (1, b"")
    assert b"not the one that was signed" in altered.stderr


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "signing.key").unlink(), "No such file"),
        (lambda folder: (folder / "signing.key").write_text("nonsense"), "no private key"),
        (lambda folder: (folder / "signing.pub").write_text("nonsense"), "NAME+ID+KEY"),
    ],
    ids=["no key", "no sound key", "no sound public key"],
)
def test_without_a_key_nothing_is_signed_or_written(
    report: Run, keys: Path, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(keys / "collector" / "audit")
    result = report("access", "--out", tmp_path / "x", "--sign", "--state", keys)
    assert result.returncode == 1
    assert says in result.stderr.decode()
    assert not (tmp_path / "x").exists()


def test_a_report_without_a_signature_is_told(tmp_path: Path, keys: Path) -> None:
    (tmp_path / "x").write_text("x")
    result = peltast("verify-report", tmp_path / "x", "--state", keys)
    assert result.returncode == 1
    assert b"x.sig" in result.stderr
