"""Lists in documents are those of the code: what is added there and not told here is found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from peltast.audit.ocsf import PLACES
from peltast.cli.main import app
from peltast.policies.kinds.registry import KINDS
from peltast.policies.kinds.resource import Model

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "authz" / "engine" / "src"


def document(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def rows(text: str, after: str) -> list[list[str]]:
    """The cells of the first table of `text` that begins below `after`, without its head; code without its ticks."""
    _, found, rest = text.partition(after)
    assert found, after
    lines: list[str] = []
    for line in rest.splitlines()[1:]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            break
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_audit_md_has_every_field() -> None:
    source = (ENGINE / "record.rs").read_text()
    declared = re.findall(r'^    \w+ = (\d+) (Text|Bytes|Number) "(\w+)",$', source, re.MULTILINE)
    told = [(tag, kind, name) for tag, name, kind, *_ in rows(document("audit.md"), "### Fields")]
    assert told == [(tag, name_of_type.lower(), name) for tag, name_of_type, name in declared]


def variants(enum: str) -> list[tuple[str, str]]:
    """The numbers and names of an enumeration of record.rs, in order."""
    source = (ENGINE / "record.rs").read_text().partition(f"pub enum {enum} {{")[2].partition("\n}")[0]
    return [(number, name.lower()) for name, number in re.findall(r"^    (\w+) = (\d+),$", source, re.MULTILINE)]


def test_audit_md_has_every_kind_and_state() -> None:
    text = document("audit.md")
    assert [(number, name) for number, name, _ in rows(text, "[audit-schema.md](audit-schema.md).")] == variants("Kind")
    assert [(number, name) for number, name, _ in rows(text, "A field that is absent")] == variants("State")


def test_audit_schema_md_has_every_kind_with_fields_that_are_told_to_be_in_it() -> None:
    """And none that are not: audit.md says of each field which kinds have it."""
    table = rows(document("audit-schema.md"), "## Kinds")
    assert [(number, name) for number, name, *_ in table] == variants("Kind")
    fields = {name: kinds.split(", ") for _, name, _, kinds, _ in rows(document("audit.md"), "### Fields")}
    for _, kind, always, sometimes in table:
        named = {word for word in re.findall(r"\w+", f"{always} {sometimes}") if word in fields}
        assert named == {name for name, kinds in fields.items() if kind in kinds}, kind


def test_audit_schema_md_has_every_column_of_a_row_that_is_no_field() -> None:
    migration = (ROOT / "audit/peltast/audit/store/migrations/0003_audit_log.sql").read_text()
    table = migration.partition("CREATE TABLE records (")[2].partition("PRIMARY KEY")[0]
    columns = re.findall(r"^    (\w+) ([a-z]+(?:\[\])?)", table, re.MULTILINE)
    columns += re.findall(
        r"ADD (\w+) (\w+)", (ROOT / "audit/peltast/audit/store/migrations/0004_notes.sql").read_text()
    )
    fields = {name: kind for _, name, kind, *_ in rows(document("audit.md"), "### Fields")}
    told = [(name, kind) for name, kind, _ in rows(document("audit-schema.md"), "## Row")]
    assert told == [(name, kind) for name, kind in columns if name not in fields]
    types = {kind: column for kind, column, _ in rows(document("audit-schema.md"), "All other columns")}
    assert {name: types[kind] for name, kind in fields.items()} == {
        name: kind for name, kind in columns if name in fields
    }


def test_audit_md_has_every_reason_with_its_status() -> None:
    source = (ENGINE / "decision.rs").read_text()
    declared = dict(re.findall(r'^    (\w+) = "(\w+)",$', source, re.MULTILINE))
    table = rows(document("audit.md"), "### Reasons")
    assert [reason for reason, *_ in table] == list(declared.values())
    arms = source[source.index("pub fn status(") : source.index("/// What a policy wants done to headers")]
    others = {
        declared[name]: status
        for names, status in re.findall(r"((?:Self::\w+\s*\|?\s*)+)=> (\d+)", arms)
        for name in re.findall(r"Self::(\w+)", names)
    }
    allowing = {"allow_rule", "no_allow_policy", "rego_allowed"}
    for reason, status, _ in table:
        wanted = "" if reason in allowing else others.get(reason, "403")
        assert status.split(",")[0] == wanted, reason


def test_audit_md_has_every_reason_of_a_refusal() -> None:
    source = (ROOT / "proxy" / "filter" / "src" / "access_log.rs").read_text()
    declared = re.findall(r'^        \(\).*=> "(\w+)",$', source, re.MULTILINE)
    told = [reason for reason, _ in rows(document("audit.md"), "`decided_by` is `failed-open`.")]
    assert told == declared


def test_audit_md_has_every_act() -> None:
    source = "".join(
        (ROOT / file).read_text()
        for file in (
            "cli/peltast/cli/control_plane.py",
            "cli/peltast/cli/changes.py",
            "cli/peltast/cli/check_workers.py",
            "cli/peltast/cli/operator_acts.py",
            "identity/peltast/identity/ca/service.py",
            "audit/peltast/audit/collector/collect.py",
        )
    )
    subjects = "check|svid|configuration|bundle|revision|resource|keys|token|audit|hold|limits|partition|auditor|spool"
    declared = set(re.findall(rf'"((?:{subjects})\.(?!pem|json)\w+)"', source))
    told = {action for action, _ in rows(document("audit.md"), "| `handshake_failed`")}
    assert told == declared


def test_audit_export_md_has_every_place_of_a_column() -> None:
    told = [(column, places.replace("`", "").split(" and ")) for column, places in
            rows(document("audit-export.md"), "of what was allowed, or ended")]  # fmt: skip
    assert told == [(column, [path for path, _ in places]) for column, places in PLACES.items()]


def test_rego_md_has_every_builtin() -> None:
    source = (ENGINE / "rego" / "builtins.rs").read_text()
    allowed = re.findall(r'"([\w.]+)"', source.partition("const ALLOWED")[2].partition("];")[0])
    conditional = re.findall(r'^        "([\w.]+)" => ', source, re.MULTILINE)
    text = document("rego.md").partition("### Built-ins")[2]
    listed = text.partition("```text\n")[2].partition("```")[0].split()
    assert listed == allowed
    assert [name for name, _ in rows(text, "must be written out as a literal")] == conditional


def test_rego_md_has_every_field_of_the_input() -> None:
    source = (ENGINE / "rego" / "input.rs").read_text()
    fields = re.findall(r"^    \(&\[([^]]+)\], Field::", source, re.MULTILINE)
    text = document("rego.md").partition("## Input")[2].partition("## Answer")[0]
    for field in fields:
        path = re.findall(r'"(\w+)"', field)
        assert f".{path[-1]}`" in text or f"`{'.'.join(path)}`" in text, path


def models(model: type[Model]) -> Iterator[type[Model]]:
    """`model` and every model below it."""
    yield model
    for field in model.model_fields.values():
        for part in models_in(field.annotation):
            yield from models(part)


def models_in(annotation: object) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


REFUSED = [(kind, name, model.refused[name]) for kind, (_, spec) in KINDS.items() for model in models(spec)
           for name in model.refused]  # fmt: skip


@pytest.mark.parametrize(("kind", "field", "reason"), REFUSED, ids=[f"{kind}-{field}" for kind, field, _ in REFUSED])
def test_differences_md_has_every_refused_field_with_its_reason(kind: str, field: str, reason: str) -> None:
    table = [line for line in document("differences.md").splitlines() if line.startswith(f"| {kind} |")]
    assert any(re.search(rf"\b{field}`", line) and "refused" in line and reason in line for line in table)


@pytest.mark.parametrize("kind", KINDS)
def test_configuration_md_has_every_field_of_a_kind(kind: str) -> None:
    versions, spec = KINDS[kind]
    text = document("configuration.md").partition(f"### {kind}\n")[2]
    text = re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0]
    assert f"`{versions[0]}`" in text
    assert all(version.rpartition("/")[2] in text for version in versions)
    names = [field.alias or name for model in models(spec) for name, field in model.model_fields.items()]
    positive = [name for name in names if not name.startswith("not") or name == "notValues"]
    missing = [name for name in positive if not re.search(rf"[`.\]]{name}(\[\])?[`.\[]", text)]
    assert missing == []


def test_configuration_md_has_every_command_and_flag() -> None:
    text = document("configuration.md").partition("## Commands")[2]
    for path, options in options_of(get_command(app)):
        assert path[-1] in text, path
        for option in options:
            assert f"`{option}" in text, (path, option)


def options_of(command: object, path: tuple[str, ...] = ("peltast",)) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    yield path, [name for each in command.params for name in each.opts if name.startswith("--") and name != "--help"]  # type: ignore[attr-defined]
    for name, inner in getattr(command, "commands", {}).items():
        yield from options_of(inner, (*path, name))
