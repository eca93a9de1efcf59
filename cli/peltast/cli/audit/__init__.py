"""``peltast audit``: what is on record."""

from __future__ import annotations

import typer

from peltast.cli.audit import disagreements, prove, verify

__all__ = ["app"]

app = typer.Typer(help="What is on record: queries, reports, proofs.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """What is on record: queries, reports, proofs."""


app.command("verify")(verify.verify)
app.command("prove")(prove.prove)
app.command("disagreements")(disagreements.disagreements)
