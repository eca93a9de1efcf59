"""What commands say: results on standard output, everything else on standard error, colour on terminals only."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from peltast.policies.problems import InvalidConfiguration

__all__ = ["Output", "err", "out", "print_error", "print_json", "print_problems", "run_until_stopped"]

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)


class Output(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"


def print_json(value: object) -> None:
    """Writes `value` for programs."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def print_error(error: BaseException) -> None:
    """Writes what is wrong, for people."""
    err.print(f"[red]error[/red] {escape(str(error))}")


def print_problems(invalid: BaseException) -> None:
    """Writes each problem of a configuration on a line of its own."""
    assert isinstance(invalid, InvalidConfiguration)
    for problem in invalid.problems:
        err.print(f"[red]error[/red] {escape(str(problem))}")
    number = len(invalid.problems)
    err.print(f"{number} problem{'s' if number != 1 else ''}; nothing of this configuration takes effect.")


def run_until_stopped(main: Coroutine[Any, Any, int | None]) -> None:
    """Runs `main`, and ends it in good order when the process is told to stop; exits with what it gives."""
    raise typer.Exit(asyncio.run(_stoppable(main)) or 0)


async def _stoppable(main: Coroutine[Any, Any, int | None]) -> int | None:
    task = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return 0
