"""``peltast audit``: what is on record."""

from __future__ import annotations

import typer

from peltast.cli.audit import auditor, disagreements, export, hold, prove, query, report, retain, serve, verify

__all__ = ["app"]

app = typer.Typer(
    help="What is on record: queries, reports, proofs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def audit() -> None:
    """What is on record: queries, reports, proofs."""


app.command("query")(query.query)
app.command("serve")(serve.serve)
app.command("report")(report.report)
app.command("verify-report")(report.verify_report)
app.command("verify")(verify.verify)
app.command("prove")(prove.prove)
app.command("disagreements")(disagreements.disagreements)
app.command("export")(export.export)
app.command("retain")(retain.retain)
app.add_typer(hold.app, name="hold")
app.add_typer(auditor.app, name="auditor")
