"""The examples as `peltast up` runs them: what their READMEs say that one asks, sees, and finds on record."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.http import ask
from support.running import RunningMesh, eventually

from peltast.policies.snapshot import load
from peltast.policies.sources.folder import read_folder

FOLDER = Path(__file__).parents[2] / "policies" / "examples"
EXAMPLES = sorted(readme.parent for readme in FOLDER.glob("*/README.md"))

_ROW = re.compile(
    r"^\| (?P<who>\S+/\S+) \| (?P<host>[\d.]+):(?P<port>\d+) "
    r"\| `(?P<method>[A-Z]+) (?P<path>\S+)`(?: `(?P<header>.+?)`)? "
    r"\| (?P<status>\d+)(?: `(?P<body>.+?)`)? \| `(?P<reason>\w+)` \|$",
    re.MULTILINE,
)
_SQL = re.compile(r"^SELECT .*?;$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One row of a README's table."""

    who: str
    host: str
    port: str
    method: str
    path: str
    header: str | None
    status: str
    body: str | None
    reason: str


def rows(example: Path) -> list[Row]:
    text = (example / "README.md").read_text()
    found = [Row(**row.groupdict()) for row in _ROW.finditer(text)]
    assert len(found) == text.count(":15001 |") > 0, "each row is understood"
    return found


async def answer(row: Row) -> tuple[int, str]:
    headers = dict([row.header.split(": ", 1)]) if row.header else {}
    response = await ask(row.host, int(row.port), row.method, row.path, headers)
    return response.status, response.body.decode()


def test_each_example_is_in_the_list() -> None:
    listed = re.findall(r"^\| \[[\w-]+\]\(([\w-]+)/README\.md\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == [example.name for example in EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
async def test_one_sees_what_the_readme_says(example: Path, state: Path) -> None:
    workloads = load(read_folder(example), "cluster.local", 1).workloads
    async with RunningMesh(example, state, "--concurrency", "1") as mesh:

        async def is_up() -> bool:
            return (await answer(rows(example)[0]))[0] == int(rows(example)[0].status)

        await eventually(is_up, "the application answers")
        for row in rows(example):
            assert (workloads[row.who].address, workloads[row.who].routes[0].port) == (row.host, int(row.port))
            status, body = await answer(row)
            assert status == int(row.status), f"{row}: {status}"
            assert (row.body or "") in body, row
        connection = await mesh.connect()
        last = len(rows(example))
        query = (
            f"SELECT source_principal, reason FROM requests WHERE reason IS NOT NULL ORDER BY time DESC LIMIT {last}"
        )

        async def are_recorded() -> bool:
            found = [(row["source_principal"], row["reason"]) for row in await connection.fetch(query)]
            return found[::-1] == [(workloads[row.who].principal, row.reason) for row in rows(example)]

        try:
            await eventually(are_recorded, "what happened is on record")
            for shown in _SQL.findall((example / "README.md").read_text()):
                assert await connection.fetch(shown)
        finally:
            await connection.close()
