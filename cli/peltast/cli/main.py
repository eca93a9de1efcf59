"""The ``peltast`` command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

__all__ = ["main"]

_COMPONENTS = "Components: started by `peltast up`, or by systemd and the like"
_MODULES = {
    "up": "peltast.cli.up",
    "demo": "peltast.cli.demo.command",
    "validate": "peltast.cli.validate",
    "version": "peltast.cli.version",
    "policy": "peltast.cli.policy",
    "proxy": "peltast.cli.proxy",
    "token": "peltast.cli.token",
    "audit": "peltast.cli.audit.commands",
    "quota": "peltast.cli.quota",
    "control-plane": "peltast.cli.control_plane",
    "collector": "peltast.cli.collector",
    "agent": "peltast.cli.agent",
}
_PANELS = dict.fromkeys(("control-plane", "collector", "agent"), _COMPONENTS)


class _Commands(Mapping[str, Any]):
    """The ``app`` of each module, loaded when it is asked for.

    A mesh is many processes, and most of the time that one takes to start is the loading of what it does not need.
    """

    def __getitem__(self, name: str) -> Any:
        command = typer.main.get_command(import_module(_MODULES[name]).app)
        command.name = name
        command.rich_help_panel = _PANELS.get(name)  # type: ignore[attr-defined]
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class _Group(TyperGroup):
    """The group of all commands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the help."""
        return list(self.commands)


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _peltast() -> None:
    """A zero-trust service mesh with a policy engine at its heart."""


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
