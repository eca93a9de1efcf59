"""What documents show is run: commands as readers type them, YAML as a configuration, SQL on a real store."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from peltast.authz.admission import RegoAdmission
from peltast.authz.revision import compile_revision
from peltast.policies.snapshot import load
from peltast.policies.sources.bundle import Bundle, read_bundle

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]

START_SECONDS = 60
STOP_SECONDS = 5
COMMAND_SECONDS = 60

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"^([a-z0-9]+):", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#:]+)(?:#([^)]+))?\)")


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of `document` in `language`."""
    return [text for name, text in _FENCE.findall(document.read_text()) if name == language]


def commands() -> list[str]:
    """What readers are told to type, each once."""
    lines = (line for document in DOCUMENTS for block in blocks(document, "console") for line in block.splitlines())
    return list(dict.fromkeys(line.removeprefix("$ ") for line in lines if line.startswith("$ ")))


def kind(command: str) -> str:
    """How a command is to be run: `make`, `up`, `demo`, `curl` or `operate` (while a mesh is up), or plainly."""
    program, first = (*command.split(), "", "")[:2]
    name = Path(program).name
    if name == "peltast":
        return {"up": "up", "demo": "demo", "token": "operate", "proxy": "operate", "audit": "operate"}.get(
            first, "plain"
        )
    return name if name in ("make", "curl") else "plain"


def of_kind(*kinds: str) -> list[str]:
    return [command for command in commands() if kind(command) in kinds]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks to commands like a clone after `make build`."""
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / ".venv").symlink_to(ROOT / ".venv")
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(ROOT / "deploy" / "samples", clone / "deploy" / "samples", ignore=ignored)
    return clone


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    shell = ["bash", "-euo", "pipefail", "-c", command]
    return subprocess.run(shell, cwd=folder, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)


def test_documents_show_a_command_of_every_kind() -> None:
    assert {kind(command) for command in commands()} == {"make", "up", "demo", "curl", "operate", "plain"}


@pytest.mark.parametrize("command", of_kind("make"))
def test_what_is_to_be_made_is_a_target(command: str) -> None:
    _, *targets = command.split()
    assert targets
    assert set(targets) <= set(_TARGET.findall((ROOT / "Makefile").read_text()))


@pytest.mark.parametrize("command", of_kind("plain"))
def test_a_command_succeeds(command: str, clone: Path) -> None:
    ended = run(command, clone)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.strip()


@pytest.mark.e2e
@pytest.mark.parametrize("command", of_kind("demo"))
def test_the_demo_finds_everything_as_expected(command: str, clone: Path) -> None:
    ended = run(command, clone)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Everything is stopped." in ended.stdout


@asynccontextmanager
async def started(command: str, folder: Path) -> AsyncIterator[Callable[[], str]]:
    """A mesh by `command` in a process group of its own: gives its output so far; ends it by SIGINT, in time."""
    output = folder / "output"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_shell(
            f"exec {command}", cwd=folder, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ready" not in output.read_text():
            assert process.returncode is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            await asyncio.sleep(0.05)
        yield output.read_text
        os.killpg(process.pid, signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), STOP_SECONDS) == 0, output.read_text()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


@pytest.mark.e2e
@pytest.mark.parametrize("command", of_kind("up"))
async def test_a_mesh_comes_up_answers_and_ends(command: str, clone: Path) -> None:
    async with started(command, clone) as output:
        for question in of_kind("curl", "operate"):
            ended = run(question, clone)
            assert ended.returncode == 0, ended.stderr
        found = re.search(r"psql '([^']+)'", output())
        assert found is not None, output()
        connection = await asyncpg.connect(found[1])
        try:
            for query in [query for document in DOCUMENTS for query in blocks(document, "sql")]:
                await connection.fetch(query)
        finally:
            await connection.close()


WITH_YAML = [document for document in DOCUMENTS if blocks(document, "yaml")]


@pytest.mark.parametrize("document", WITH_YAML, ids=lambda document: document.name)
async def test_the_yaml_of_a_document_is_a_configuration(document: Path) -> None:
    text = "---\n".join(blocks(document, "yaml"))
    snapshot = load({f"{document.stem}.yaml": text.encode()}, "cluster.local", 1)
    sources = [source for source in snapshot.rego.values() if source.location is not None]
    fetched = {source.location: bundle_with(source.resource.spec.entrypoint) for source in sources}
    async with RegoAdmission() as admission:
        revision = compile_revision(await admission.check(snapshot.with_bundles(fetched)))
    assert revision.snapshot.resources


def bundle_with(entrypoint: str) -> Bundle:
    """What a document's URL might serve."""
    package, _, rule = entrypoint.removeprefix("data.").rpartition(".")
    return read_bundle({"rules.rego": f"package {package}\n\n{rule} := true\n".encode()}, None)


EXAMPLES = sorted((ROOT / "policies" / "examples").rglob("*.md"))


@pytest.mark.parametrize("document", [*DOCUMENTS, *EXAMPLES], ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in _LINK.findall(document.read_text()):
        file = document.parent / target
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles]
