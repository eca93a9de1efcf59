from __future__ import annotations

import asyncio
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.sources import folder as folder_source
from peltast.policies.sources.folder import MAX_FILE_BYTES, read_folder, watch_folder


def refusal(folder: Path) -> Problem:
    with pytest.raises(InvalidConfiguration) as caught:
        read_folder(folder)
    (problem,) = caught.value.problems
    return problem


def test_every_configuration_file_below_the_folder_is_read(tmp_path: Path) -> None:
    wanted = {"a.yaml": b"a", "b.yml": b"b", "sub/c.rego": b"c", "sub/deeper/d.json": b"\xff"}
    others = {"e.txt": b"", "yaml": b"", ".hidden.yaml": b"", ".git/f.yaml": b"", "g.yaml.bak": b""}
    for name, content in {**wanted, **others}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert read_folder(tmp_path) == wanted


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert read_folder(tmp_path) == {}


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "absent").given == "not a folder"
    assert refusal(tmp_path / "file").given == "not a folder"


def test_a_file_of_100_mb_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    with (tmp_path / "big.yaml").open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    tracemalloc.start()
    problem = refusal(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (problem.file, problem.given) == ("big.yaml", "104,857,600 bytes are given")
    assert problem.allowed == f"a file has at most {MAX_FILE_BYTES:,} bytes"
    assert most < 3 * MAX_FILE_BYTES


def test_a_file_may_have_4_mib(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"#" * MAX_FILE_BYTES)
    assert len(read_folder(tmp_path)["a.yaml"]) == MAX_FILE_BYTES
    (tmp_path / "a.yaml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert "4,194,305 bytes" in refusal(tmp_path).given


@pytest.mark.parametrize("bound", ["MAX_FILES", "MAX_TOTAL_BYTES"])
def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(folder_source, bound, 3)
    for name in ("a.yaml", "b.yaml", "c.yaml"):
        (tmp_path / name).write_bytes(b"#")
    assert len(read_folder(tmp_path)) == 3
    (tmp_path / "d.yaml").write_bytes(b"#")
    assert refusal(tmp_path).given == "more than a configuration has"


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret.yaml").write_text("secret")
    (tmp_path / "inside" / "a.yaml").symlink_to(tmp_path / "secret.yaml")
    problem = refusal(tmp_path / "inside")
    assert (problem.file, problem.given) == ("a.yaml", "a link out of the folder")


def test_a_link_to_a_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to("/dev/zero")
    assert refusal(tmp_path).given == "a link out of the folder"


def test_a_linked_folder_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.yaml").write_text("")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    assert read_folder(tmp_path / "inside") == {}


def test_links_within_the_folder_are_read_as_a_mounted_config_map_needs(tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "a.yaml").write_text("a")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert read_folder(tmp_path) == {"a.yaml": b"a"}


def test_a_folder_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.yaml").write_text("a")
    (tmp_path / "link").symlink_to("real")
    assert read_folder(tmp_path / "link") == {"a.yaml": b"a"}


@pytest.mark.parametrize("target", ["absent.yaml", "a.yaml"], ids=["to nothing", "to itself"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "a.yaml").symlink_to(target)
    problem = refusal(tmp_path)
    assert problem.file == "a.yaml"
    assert "cannot be read" in problem.given


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    problem = refusal(tmp_path)
    assert (problem.file, problem.allowed) == ("a.yaml", "a readable file is expected")


def test_a_folder_that_cannot_be_listed_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    """Policies in it would be missing. Too long a path stands for all that a system may refuse, also to root."""
    top = tmp_path / "deep"
    top.mkdir()
    handle = os.open(top, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=handle)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)
    try:
        assert "cannot be listed" in refusal(top).given
    finally:
        shutil.rmtree(top)


def test_all_unreadable_files_are_told_at_once(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).symlink_to("/etc/hostname")
    with pytest.raises(InvalidConfiguration) as caught:
        read_folder(tmp_path)
    assert [problem.file for problem in caught.value.problems] == ["a.yaml", "b.yaml"]


# Watching -------------------------------------------------------------------------------------------------------------

SECONDS = 20


async def test_a_watched_folder_is_given_at_once_and_after_every_change(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    changes = watch_folder(tmp_path)
    async with asyncio.timeout(SECONDS):
        assert await anext(changes) == {}
        (tmp_path / "a.yaml").write_text("1")
        while await anext(changes) != {"a.yaml": b"1"}:
            pass
        (tmp_path / "sub" / "b.rego").write_text("2")
        while await anext(changes) != {"a.yaml": b"1", "sub/b.rego": b"2"}:
            pass
        (tmp_path / "a.yaml").unlink()
        while await anext(changes) != {"sub/b.rego": b"2"}:
            pass
    await changes.aclose()


async def test_a_moved_folder_is_a_change(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("1")
    changes = watch_folder(tmp_path)
    async with asyncio.timeout(SECONDS):
        assert await anext(changes) == {"sub/a.yaml": b"1"}
        (tmp_path / "sub").rename(tmp_path / "other")
        while await anext(changes) != {"other/a.yaml": b"1"}:
            pass
    await changes.aclose()


async def test_a_config_map_that_is_swapped_is_a_change(tmp_path: Path) -> None:
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(version)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    changes = watch_folder(tmp_path)
    async with asyncio.timeout(SECONDS):
        assert await anext(changes) == {"a.yaml": b"..1"}
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        while await anext(changes) != {"a.yaml": b"..2"}:
            pass
    await changes.aclose()


async def test_what_is_wrong_is_given_and_watching_goes_on(tmp_path: Path) -> None:
    link = tmp_path / "a.yaml"
    link.symlink_to("/etc/hostname")
    changes = watch_folder(tmp_path)
    async with asyncio.timeout(SECONDS):
        assert isinstance(await anext(changes), InvalidConfiguration)
        link.unlink()
        while await anext(changes) != {}:
            pass
    await changes.aclose()
