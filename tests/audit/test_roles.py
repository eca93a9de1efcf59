"""What each role of the store may do, and that it may do nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.starts import take_in
from typer.testing import CliRunner

from peltast.audit.store.auditors import Auditor, InvalidAuditor, add_auditor, auditors, remove_auditor
from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.cli.main import app

Connection = asyncpg.Connection

RECORD = (
    "INSERT INTO records (spool, sequence, leaf, owner, schema, time, time_ns, body, link) "
    "VALUES ('', 1, 0, '', 1, now(), 1, '', '')"
)
TABLES = [
    *("records", "records_default", "spools", "quarantine", "tree", "tiles", "checkpoints", "starts", "gaps"),
    *("exports", "legal_holds", "dropped_partitions", "dropped_records", "auditors", "migrations"),
]

COLLECTS = [
    RECORD,
    "SELECT spool, sequence, leaf, time, kind, decision_sequence, link FROM records",
    "SELECT spool, since, until, link FROM dropped_records",
    "SELECT * FROM spools",
    "UPDATE spools SET sequence = 1, link = link, last_seen = now(), start = start, start_index = 1, closed = true",
    "SELECT size, frontier FROM tree FOR UPDATE",
    "UPDATE tree SET size = size, frontier = frontier",
    "SELECT * FROM checkpoints, tiles, starts, gaps",
    "INSERT INTO checkpoints (size, root, note) VALUES (1, repeat('x', 32)::bytea, '')",
    "INSERT INTO gaps (spool, since, until, reason) VALUES ('', 1, 2, '')",
    "SELECT ensure_partitions()",
]

READS = [
    *(f"SELECT * FROM {table}" for table in TABLES if table not in ("records_default", "exports", "migrations")),
    "SELECT * FROM requests",
    "SELECT * FROM counted_requests",
]

ANYBODY_MUST_NOT = [
    *(f"DELETE FROM {table}" for table in TABLES),
    *(f"TRUNCATE {table}" for table in TABLES),
    *(f"DROP TABLE {table}" for table in TABLES),
    *(f"ALTER TABLE {table} ADD x int" for table in TABLES),
    *(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY" for table in TABLES),
    *(f"CREATE TRIGGER t BEFORE INSERT ON {table} EXECUTE FUNCTION suppress_redundant_updates_trigger()"
      for table in TABLES),
    "ALTER TABLE records DETACH PARTITION records_default",
    "CREATE RULE r AS ON INSERT TO records DO INSTEAD NOTHING",
    "CREATE POLICY mine ON records USING (true)",
    "DROP POLICY seen ON records",
    "UPDATE records SET path = ''",
    "UPDATE records SET link = ''",
    "UPDATE spools SET owner = ''",
    "UPDATE checkpoints SET root = ''",
    "UPDATE tiles SET hashes = ''",
    "UPDATE requests SET path = ''",
    "SELECT * FROM records_default",
    "SELECT * FROM exports",
    "SELECT make_partition('2020-01-01')",
    "INSERT INTO legal_holds VALUES ('x', now(), now(), '')",
    "INSERT INTO auditors VALUES (current_user, '*')",
    "INSERT INTO dropped_partitions (day, records) VALUES (now(), 1)",
    "INSERT INTO dropped_records VALUES ('', 1, 2, 3, '')",
    "INSERT INTO migrations VALUES ('x', now())",
    "CREATE TABLE public.mine (a int)",
    "CREATE TEMPORARY TABLE mine (a int)",
    "CREATE SCHEMA mine",
    "CREATE VIEW public.mine AS SELECT 1",
    "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION ensure_partitions() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
    "CREATE ROLE mine",
    "ALTER ROLE peltast_auditor SUPERUSER",
    "ALTER ROLE peltast_collector SUPERUSER",
    "GRANT peltast_auditor TO peltast_collector",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "COPY records TO PROGRAM 'true'",
    "COPY checkpoints TO '/tmp/peltast-must-not'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT lo_create(1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_put(1, 0, 'x')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
    "SELECT; LOCK TABLE records IN ACCESS EXCLUSIVE MODE",
    "COMMENT ON TABLE records IS 'x'",
    "REINDEX TABLE records",
]  # fmt: skip

COLLECTOR_MUST_NOT = [
    *(f"SELECT {column} FROM records" for column in ("*", "body", "path", "owner", "request_headers", "claims")),
    "SELECT * FROM requests",
    "SELECT frames FROM quarantine",
    "SELECT * FROM legal_holds",
    "SELECT * FROM auditors",
    "COPY records TO STDOUT",
    "SET ROLE peltast_auditor",
]

AUDITOR_MUST_NOT = [
    RECORD,
    "INSERT INTO spools (spool, owner, sequence, link) VALUES ('', '', 0, '')",
    "INSERT INTO checkpoints (size, root, note) VALUES (1, repeat('x', 32)::bytea, '')",
    "UPDATE spools SET sequence = 1",
    "UPDATE tree SET size = 0",
    "SELECT size FROM tree FOR UPDATE",
    "SELECT ensure_partitions()",
    "SET ROLE peltast_collector",
]

REFUSED = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # a view cannot be updated
    asyncpg.UndefinedTableError,  # pg_temp, which was never made
    asyncpg.InvalidSchemaNameError,
)
_REASON = re.compile("permission denied|must be owner|must be able to SET|not own|cannot (up|de)")


async def answers(connection: Connection, statements: Sequence[str]) -> dict[str, str]:
    """What came of each: all in one test, for a store of its own for each takes its time."""
    return {statement: await answer(connection, statement) for statement in statements}


async def answer(connection: Connection, statement: str) -> str:
    try:
        await connection.execute(statement)
    except REFUSED as error:
        return "refused" if _REASON.search(str(error)) else str(error)
    except asyncpg.PostgresError as error:
        return str(error)
    return "done"


async def test_the_collector_may_do_its_work_and_nothing_else(collector: Connection) -> None:
    assert await answers(collector, COLLECTS) == dict.fromkeys(COLLECTS, "done")
    forbidden = [*ANYBODY_MUST_NOT, *COLLECTOR_MUST_NOT]
    assert await answers(collector, forbidden) == dict.fromkeys(forbidden, "refused")


async def test_an_auditor_may_read_and_nothing_else(auditor: Connection) -> None:
    """Also one who takes off the setting, which anybody can."""
    assert await answers(auditor, READS) == dict.fromkeys(READS, "done")
    await auditor.execute("SET default_transaction_read_only = off")
    forbidden = [*ANYBODY_MUST_NOT, *AUDITOR_MUST_NOT]
    assert await answers(auditor, forbidden) == dict.fromkeys(forbidden, "refused")


async def test_an_auditor_of_a_namespace_may_read_and_nothing_else(mary: Connection) -> None:
    assert await answers(mary, READS) == dict.fromkeys(READS, "done")
    await mary.execute("SET default_transaction_read_only = off")
    forbidden = [*ANYBODY_MUST_NOT, *AUDITOR_MUST_NOT, "SET ROLE peltast_auditor"]
    assert await answers(mary, forbidden) == dict.fromkeys(forbidden, "refused")


async def test_an_auditors_transactions_are_read_only_by_default(auditor: Connection, mary: Connection) -> None:
    for connection in (auditor, mary):
        assert await connection.fetchval("SHOW transaction_read_only") == "on"


# Namespaces -----------------------------------------------------------------------------------------------------------

OTHER = "spiffe://mesh.example/ns/payments/sa/ledger"
CONTROL = "spiffe://mesh.example/peltast/control"
SEEN = "SELECT DISTINCT owner FROM {} ORDER BY owner"


@pytest.fixture
async def mary(postgres: EmbeddedPostgres, owner: Connection) -> AsyncIterator[Connection]:
    """An auditor of the namespace bookshop."""
    await add_auditor(owner, Auditor("mary", "bookshop"))
    try:
        async with as_role(postgres, "mary") as connection:
            yield connection
    finally:
        for each in await auditors(owner):
            await remove_auditor(owner, each)


@asynccontextmanager
async def as_role(postgres: EmbeddedPostgres, role: str) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(postgres.url(role))
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def three_owners(owner: Connection, collector: Connection, stored: Any) -> None:
    """Records of two namespaces and of the control plane."""
    ledger, acts = (type(stored)(stored.root, stored.usage, owner) for owner in (OTHER, CONTROL))
    ledger.append(path="/ledger", effect="deny")
    await take_in(collector, ledger.id, OTHER, ledger.frames())
    acts.append("act", action="svid.issue")
    await take_in(collector, acts.id, CONTROL, acts.frames())
    await owner.execute("INSERT INTO quarantine SELECT spool, owner, '', '', repeat('x', 32)::bytea FROM spools")


@pytest.mark.parametrize("table", ["records", "spools", "quarantine", "starts"])
async def test_an_auditor_sees_the_namespaces_that_they_were_given(
    three_owners: None, owner: Connection, auditor: Connection, mary: Connection, principal: str, table: str
) -> None:
    async def seen(connection: Connection) -> list[str]:
        return [row["owner"] for row in await connection.fetch(SEEN.format(table))]

    assert await seen(auditor) == [principal, OTHER, CONTROL]
    assert await seen(mary) == [principal]
    await add_auditor(owner, Auditor("mary", "payments"))
    assert await seen(mary) == [principal, OTHER]
    await remove_auditor(owner, Auditor("mary", "bookshop"))
    assert await seen(mary) == [OTHER]
    await add_auditor(owner, Auditor("mary", "*"))
    assert await seen(mary) == [principal, OTHER, CONTROL]


async def test_requests_are_of_the_namespaces_of_whoever_asks(
    three_owners: None, auditor: Connection, mary: Connection
) -> None:
    query = "SELECT path FROM requests ORDER BY path"
    assert [row["path"] for row in await auditor.fetch(query)] == ["/a", "/b", "/c", "/ledger"]
    assert [row["path"] for row in await mary.fetch(query)] == ["/a", "/b", "/c"]


async def test_a_condition_sees_no_row_that_its_asker_does_not(three_owners: None, mary: Connection) -> None:
    """A cast that fails would tell what is in it."""
    query = "SELECT count(*) FROM records WHERE path IS NOT NULL AND (path = '/ledger' AND 1 / (length(path) - 7) = 0)"
    assert await mary.fetchval(query) == 0


async def test_a_role_that_is_no_longer_an_auditor_is_gone(
    three_owners: None, postgres: EmbeddedPostgres, owner: Connection, mary: Connection
) -> None:
    await remove_auditor(owner, Auditor("mary", "bookshop"))
    with pytest.raises(asyncpg.PostgresError):
        await mary.fetch("SELECT * FROM records")
    with pytest.raises((asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidPasswordError)):
        await asyncpg.connect(postgres.url("mary"))


async def test_auditors_do_not_see_each_other(three_owners: None, owner: Connection, mary: Connection) -> None:
    await add_auditor(owner, Auditor("peter", "payments"))
    assert [row["role"] for row in await mary.fetch("SELECT role FROM auditors")] == ["mary"]


async def test_what_an_auditor_sees_is_found_by_the_index(
    three_owners: None, owner: Connection, mary: Connection
) -> None:
    """The condition on namespaces comes with it, and is no reason to read all."""
    await mary.execute("SET enable_seqscan = off")
    plan = await mary.fetch("EXPLAIN SELECT * FROM records WHERE time > '2026-09-01' AND time < '2026-09-02'")
    assert "records_default_time" in str(plan)
    assert 'Index Cond: (("time" >' in "\n".join(row[0] for row in plan)


@pytest.mark.parametrize(
    ("role", "namespace", "said"),
    [
        ("", "a", "role ''"),
        ("Mary", "a", "role 'Mary'"),
        ("mary; DROP TABLE records", "a", "role 'mary;"),
        ("m" * 64, "a", "role 'mmm"),
        ("pg_monitor", "a", "role 'pg_monitor'"),
        ("peltast_auditor", "a", "role 'peltast_auditor'"),
        ("peltast_collector", "a", "role 'peltast_collector'"),
        ("mary", "", "namespace ''"),
        ("mary", "Book Shop", "namespace 'Book Shop'"),
        ("mary", "**", "namespace '**'"),
    ],
)
def test_an_auditor_that_cannot_be_is_refused(role: str, namespace: str, said: str) -> None:
    with pytest.raises(InvalidAuditor, match=re.escape(said)):
        Auditor(role, namespace)


async def test_a_role_that_is_there_already_is_not_made_an_auditor(owner: Connection) -> None:
    with pytest.raises(InvalidAuditor, match="there is a role 'postgres' that is no auditor"):
        await add_auditor(owner, Auditor("postgres", "*"))
    assert await auditors(owner) == []


async def test_a_namespace_that_an_auditor_has_not_cannot_be_taken_away(owner: Connection, mary: Connection) -> None:
    with pytest.raises(InvalidAuditor, match="'mary' is no auditor of 'payments'"):
        await remove_auditor(owner, Auditor("mary", "payments"))


async def test_auditors_by_commands(owner: Connection, postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    store = ["--state", str(tmp_path), "--database", postgres.url(SUPERUSER)]

    async def run(*arguments: str) -> tuple[int, str]:
        ended = await asyncio.to_thread(CliRunner().invoke, app, ["audit", "auditor", *arguments, *store])
        return ended.exit_code, ended.output

    code, said = await run("add", "peter", "--namespace", "payments")
    assert (code, "peter sees payments" in said) == (0, True)
    assert (await run("add", "peter", "--namespace", "payments"))[0] == 0, "it is so already"
    assert json.loads((await run("list", "--output", "json"))[1]) == [{"role": "peter", "namespace": "payments"}]
    assert "payments" in (await run("list"))[1]
    assert (await run("remove", "peter", "--namespace", "payments"))[0] == 0
    code, said = await run("remove", "peter", "--namespace", "payments")
    assert (code, "is no auditor of" in said) == (1, True)
    assert not await owner.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'peter')")
