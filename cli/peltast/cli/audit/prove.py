"""``peltast audit prove``: that a record is in the signed tree."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from peltast.audit.proof import NotProvable, Proof
from peltast.audit.proof import prove as proof_of
from peltast.cli.audit.connection import Database, StoreAway, connected
from peltast.cli.console import print_error
from peltast.cli.options import State

__all__ = ["prove"]


def _record(text: str) -> tuple[bytes, int]:
    spool, _, sequence = text.partition(":")
    try:
        return bytes.fromhex(spool), int(sequence)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not SPOOL:SEQUENCE, as in 00112233445566778899aabbccddeeff:7") from error


def prove(
    record: Annotated[str, typer.Argument(metavar="SPOOL:SEQUENCE", help="The record.")],
    state: State = Path(".peltast"),
    database: Database = None,
) -> None:
    """Prints a proof that a record is in the signed tree, as JSON; `peltast audit verify --proof` checks it alone."""
    spool, sequence = _record(record)
    try:
        proof = asyncio.run(_prove(state, database, spool, sequence))
    except (NotProvable, StoreAway) as error:
        print_error(error)
        raise typer.Exit(1) from error
    typer.echo(json.dumps(proof.to_json(), indent=2, ensure_ascii=False))


async def _prove(state: Path, database: str | None, spool: bytes, sequence: int) -> Proof:
    async with connected(state, database) as connection:
        return await proof_of(connection, spool=spool, sequence=sequence)
