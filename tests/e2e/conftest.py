"""A small mesh in a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.running import ALLOW, MESH

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """Where the server notes the ids of the requests that it saw."""
    return tmp_path / "seen"


@pytest.fixture
def folder(tmp_path: Path, seen: Path) -> Path:
    """A client and a server; the client may GET what begins with /open."""
    folder = tmp_path / "mesh"
    folder.mkdir()
    (folder / "mesh.yaml").write_text(MESH.replace("@SEEN@", str(seen)))
    (folder / "policies.yaml").write_text(ALLOW)
    return folder
