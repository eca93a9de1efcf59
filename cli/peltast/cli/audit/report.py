"""``peltast audit report``: reports for auditors; ``peltast audit verify-report``: whether one is as it was signed."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from peltast.audit.checkpoint import BadCheckpoint, VerifierKey
from peltast.audit.reports.formats import Format, write
from peltast.audit.reports.kinds import KINDS
from peltast.audit.reports.make import Kind, TooLarge, make_report
from peltast.audit.reports.report import Report, Span
from peltast.audit.reports.signature import MAX_NOTE, BadSignature, check, sign
from peltast.audit.reports.to_terminal import to_terminal
from peltast.audit.store.errors import DATABASE_ERRORS
from peltast.authz.revision import Revision
from peltast.cli.audit.connection import Database, StoreAway, connected
from peltast.cli.console import out, print_error, print_problems
from peltast.cli.options import State, TrustDomainOption
from peltast.cli.settings import DEFAULT_TRUST_DOMAIN
from peltast.cli.validate import admitted_revision
from peltast.policies.problems import InvalidConfiguration

__all__ = ["report", "verify_report"]

_STATE = Path(".peltast")
_KEYS = Path("collector") / "audit"
_AGO = re.compile("([0-9]{1,6})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


Signer = tuple[Ed25519PrivateKey, str]
"""A key with its name."""


class Unusable(ValueError):
    """What was asked for cannot be done."""


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _list(wanted: bool) -> None:
    if wanted:
        for kind in KINDS.values():
            out.print(f"{kind.name:14} {kind.about}{' (needs DIR)' if kind.compares else ''}", markup=False)
        raise typer.Exit


def _kind(name: str) -> str:
    if name not in KINDS:
        raise typer.BadParameter(f"{name!r} is given; one of {', '.join(KINDS)} is expected")
    return name


def _time(text: str) -> datetime:
    """A day or time of RFC 3339, in UTC where it has no zone; or so long ago."""
    if ago := _AGO.fullmatch(text):
        return _now() - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        expected = "a time such as 2026-11-21T20:00:00Z, a day, or how long ago, such as 7d, is expected"
        raise typer.BadParameter(f"{text!r}: {expected}") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See --list.", callback=_kind)],
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Configuration to compare with.", exists=True, file_okay=False),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(parser=_time, metavar="TIME", help="Records from then on. Default: a day before.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=_time, metavar="TIME", help="Records before then. Default: now.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.TABLE,
    table: Annotated[
        str | None, typer.Option(help="The table that CSV and Parquet hold. Default: the report's first.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--out", help="Where it is written. Default: standard output.", dir_okay=False)
    ] = None,
    signed: Annotated[bool, typer.Option("--sign", help="Signs it with the collector's key, in FILE.sig.")] = False,
    state: State = _STATE,
    database: Database = None,
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    listed: Annotated[bool, typer.Option("--list", is_eager=True, callback=_list, help="Lists the reports.")] = False,
) -> None:
    """Makes a report of what is on record in a range of time: the same bytes for the same range.

    Each names the signed checkpoint of the log that it rests on.
    """
    try:
        span = _span(since, until)
        if signed and file is None:
            raise Unusable("--sign needs --out: the signature is a file beside it")
        signer = _signer(state) if signed else None
        made = asyncio.run(_made(KINDS[name], directory, span, state, database, trust_domain))
        _deliver(made, form, table, file, signer)
    except InvalidConfiguration as invalid:
        print_problems(invalid)
        raise typer.Exit(1) from None
    except (Unusable, StoreAway, TooLarge, LookupError, OSError, *DATABASE_ERRORS) as error:
        print_error(error)
        raise typer.Exit(1) from None


def verify_report(
    file: Annotated[Path, typer.Argument(help="The report; its signature is FILE.sig.", exists=True, dir_okay=False)],
    key: Annotated[
        Path | None, typer.Option(help="Public key, NAME+ID+KEY. Default: the collector's of this state.")
    ] = None,
    state: State = _STATE,
) -> None:
    """Tells whether a report is as it was signed, and what it rests on; exit 1 if it is not."""
    try:
        with file.with_name(f"{file.name}.sig").open("rb") as note:
            said = check(
                _verifier_key(key or state / _KEYS / "signing.pub"), file.read_bytes(), note.read(MAX_NOTE + 1)
            )
    except (BadSignature, Unusable, OSError) as error:
        print_error(error)
        raise typer.Exit(1) from None
    out.print(f"{file} is as it was signed", markup=False)
    for name, value in said.items():
        out.print(f"  {name} {value}", markup=False)


def _span(since: datetime | None, until: datetime | None) -> Span:
    end = until or _now()
    try:
        return Span(since or end - timedelta(days=1), end)
    except ValueError as error:
        raise Unusable(str(error)) from None


async def _made(
    kind: Kind, directory: Path | None, span: Span, state: Path, database: str | None, trust_domain: str
) -> Report:
    configuration = await _configuration(kind, directory, trust_domain)
    async with connected(state, database) as connection:
        return await make_report(kind, connection, span, configuration)


async def _configuration(kind: Kind, directory: Path | None, trust_domain: str) -> Revision | None:
    if kind.compares == (directory is not None):
        return await admitted_revision(directory, trust_domain) if directory is not None else None
    needs = "compares with a configuration: give its folder" if kind.compares else "compares with no configuration"
    raise Unusable(f"the report {kind.name} {needs}")


def _deliver(made: Report, form: Format, table: str | None, file: Path | None, signer: Signer | None) -> None:
    if file is None:
        is_shown = form is Format.TABLE and out.is_terminal
        content = to_terminal(made, out.width, colour=True) if is_shown else write(made, form, table)
        sys.stdout.buffer.write(content)
        return
    content = write(made, form, table)
    file.write_bytes(content)
    if signer is not None:
        file.with_name(f"{file.name}.sig").write_bytes(sign(*signer, made, content))
    out.print(f"{file} rests on {made.rests_on}", markup=False)


def _signer(state: Path) -> Signer:
    file = state / _KEYS / "signing.key"
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Unusable(f"{file} holds no private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Unusable(f"{file} holds no Ed25519 key")
    return key, _verifier_key(file.with_name("signing.pub")).name


def _verifier_key(file: Path) -> VerifierKey:
    try:
        return VerifierKey.parse(file.read_text())
    except (BadCheckpoint, UnicodeDecodeError) as error:
        raise Unusable(f"{file}: {error}") from None
