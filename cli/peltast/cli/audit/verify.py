"""``peltast audit verify``: whether what is on record is what was recorded."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from rich.markup import escape
from rich.progress import Progress

from peltast.audit.chain import Verification, verify_store
from peltast.audit.checkpoint import VerifierKey
from peltast.audit.collector.keys import load_sealing_key
from peltast.audit.proof import MAX_PROOF, Proof
from peltast.audit.signed import published_notes
from peltast.audit.sinks import Source, source_of
from peltast.audit.writers import Trust
from peltast.cli.audit.connection import Database, connected
from peltast.cli.console import Output, err, out, print_error, print_json
from peltast.cli.options import OutputOption, State
from peltast.cli.settings import DEFAULT_BASE_PORT, DEFAULT_TRUST_DOMAIN, ControlSettings
from peltast.cli.signing import verifier_key_file

__all__ = ["verify"]

_SHOWN = 20


def verify(
    state: State = Path(".peltast"),
    database: Database = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoints",
            metavar="SINK",
            help="Where checkpoints were published: folder:PATH or s3://BUCKET/PREFIX; may be given more than once. "
            "Default: the folder checkpoints of the state, if there is one.",
        ),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The key that checkpoints are signed with. Default: the state's.", dir_okay=False
        ),
    ] = None,
    trust_bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Root certificates in PEM: whose the spools are is checked by them. Default: the state's.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The collector's keys: the code of every record is compared. Default: the state's, if there are any.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    proof: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Check this proof alone, without a store.", exists=True, dir_okay=False),
    ] = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Verifies the log: every record's chain, code and columns, whose it is, the tree over all, every checkpoint.

    Exits 0 if everything is as it was recorded, 1 if not.
    """
    try:
        key = VerifierKey.parse((public_key or verifier_key_file(state)).read_text())
        if proof is not None:
            _check_proof(proof, key, output)
            return
        sources = _sources(state, checkpoints)
        trust = _trust(state, trust_bundle, keys)
        verification = asyncio.run(_verify(state, database, key, sources, trust))
    except (OSError, ValueError) as error:
        print_error(error)
        raise typer.Exit(1) from error
    _say(verification, tuple(sources), trust, output)
    raise typer.Exit(0 if verification.sound else 1)


def _sources(state: Path, words: Sequence[str] | None) -> dict[str, Source]:
    if words is None:
        folder = state / "checkpoints"
        words = [f"folder:{folder}"] if folder.exists() else []
    try:
        return {word: source_of(word, os.environ) for word in words}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--checkpoints") from error


def _trust(state: Path, trust_bundle: Path | None, keys: Path | None) -> Trust | None:
    """What writers are known by; none where the state has no certificate authority, and no bundle is given."""
    settings = ControlSettings(state, DEFAULT_TRUST_DOMAIN, DEFAULT_BASE_PORT)
    bundle = trust_bundle or settings.trust_bundle
    if trust_bundle is None and not bundle.exists():
        return None
    roots = x509.load_pem_x509_certificates(bundle.read_bytes())
    folder = keys or settings.audit_keys
    return Trust(roots, load_sealing_key(folder) if keys is not None or folder.exists() else None)


async def _verify(
    state: Path, database: str | None, key: VerifierKey, sources: dict[str, Source], trust: Trust | None
) -> Verification:
    published = await published_notes(sources)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("Records", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        async with connected(state, database) as connection:
            return await verify_store(connection, key, published, trust, show)


def _check_proof(file: Path, key: VerifierKey, output: Output) -> None:
    with file.open("rb") as opened:
        proof = Proof.from_json(opened.read(MAX_PROOF + 1))
    record, checkpoint = proof.check(key)
    fields = {
        name: value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
        for name, value in record.fields.items()
    }
    found = {
        "record": f"{proof.spool.hex()}:{proof.sequence}",
        "owner": proof.owner,
        "kind": record.kind,
        "time_ns": record.time_ns,
        "leaf": proof.leaf,
        "checkpoint_size": checkpoint.size,
        "origin": checkpoint.origin,
        "fields": fields,
    }
    if output is Output.JSON:
        print_json({"sound": True, **found})
        return
    out.print(f"[green]Proved[/green]: the record is leaf {proof.leaf} of {checkpoint.size} of {checkpoint.origin}.")
    for name, value in {**found, **fields}.items():
        if name != "fields":
            out.print(f"  {name}: {escape(str(value))}", highlight=False)


def _say(verification: Verification, places: Sequence[str], trust: Trust | None, output: Output) -> None:
    writers, codes = trust is not None, trust is not None and trust.sealing is not None
    if output is Output.JSON:
        checked = {"checkpoints_from": places, "writers_checked": writers, "codes_checked": codes}
        print_json({"sound": verification.sound, **checked, **_plain(verification)})
        return
    dropped = f", and {verification.dropped} that retention dropped" if verification.dropped else ""
    out.print(
        f"{verification.records} records in {verification.spools} spools{dropped}; "
        f"{verification.checkpoints} checkpoints{' of the store and ' if places else ''}{', '.join(places)}.",
        markup=False,
    )
    if not writers:
        out.print("Whose the spools are was not checked: that takes --trust-bundle.")
    if not codes:
        out.print("The codes of records were not compared: that takes --keys.")
    for gap in verification.gaps:
        out.print(f"gap on record: {gap.spool}:{gap.since} to {gap.until}: {gap.reason}", markup=False)
    for spool in verification.open[:_SHOWN]:
        start = f", spool {spool.start_index} of start {spool.start[:16]}" if spool.start else ""
        out.print(
            f"open: {spool.spool} of {spool.owner}{start}, last seen {spool.last_seen:%Y-%m-%d %H:%M:%SZ}", markup=False
        )
    for awaited in verification.awaited:
        out.print(
            f"not come yet: {awaited.what}, which {awaited.owner} states in start {awaited.start[:16]}", markup=False
        )
    if len(verification.open) > _SHOWN:
        out.print(f"… and {len(verification.open) - _SHOWN} more spools are open")
    _say_findings(verification)


def _say_findings(verification: Verification) -> None:
    if verification.sound:
        out.print("[green]Everything is as it was recorded.[/green]")
        return
    first = next((each for each in verification.findings if each.spool), None)
    for finding in verification.findings:
        err.print(f"[red]{escape(str(finding))}[/red]")
    if verification.more_findings:
        err.print(f"[red]… and {verification.more_findings} more[/red]")
    if first is not None:
        err.print(f"The first bad record is {first.spool}:{first.sequence}.")
    out.print("[red]The log is not as it was recorded.[/red]")


def _plain(verification: Verification) -> dict[str, object]:
    plain = dataclasses.asdict(verification)
    for spool in plain["open"]:
        spool["last_seen"] = spool["last_seen"].isoformat()
    return plain
