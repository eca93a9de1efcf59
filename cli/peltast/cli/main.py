"""The ``peltast`` command."""

from __future__ import annotations

import typer

from peltast.cli import audit, components, policy, proxy, token, up, validate, version
from peltast.cli.demo.command import demo

__all__ = ["main"]

app = typer.Typer(
    help="A zero-trust service mesh with a policy engine at its heart.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("up")(up.up)
app.command("demo")(demo)
app.command("validate")(validate.validate)
app.command("version")(version.version)
app.add_typer(audit.app, name="audit")
app.add_typer(policy.app, name="policy")
app.add_typer(proxy.app, name="proxy")
app.add_typer(token.app, name="token")

_COMPONENTS = "Components: started by `peltast up`, or by systemd and the like"
app.command("control-plane", rich_help_panel=_COMPONENTS)(components.control_plane)
app.command("collector", rich_help_panel=_COMPONENTS)(components.collector)
app.command("agent", rich_help_panel=_COMPONENTS)(components.agent)


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
