"""The ``peltast`` command."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from peltast.cli import components, policy, proxy, token, up, validate, version
from peltast.cli.demo.command import demo

__all__ = ["main"]


class _Commands(TyperGroup):
    """All commands. Those of ``audit`` are loaded when asked for: no process of a mesh needs what they need."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return [*super().list_commands(ctx), "audit"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The one of this name."""
        if cmd_name != "audit":
            return super().get_command(ctx, cmd_name)
        from peltast.cli.audit.commands import app as audit

        command = typer.main.get_command(audit)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Commands,
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
