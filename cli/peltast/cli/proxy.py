"""``peltast proxy``: a look inside one sidecar."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from peltast.authz._engine import read_counters
from peltast.cli.console import Output, out, print_error, print_json
from peltast.cli.options import OutputOption, State
from peltast.cli.settings import sidecar_state

__all__ = ["app"]

app = typer.Typer(help="A look inside one sidecar.", no_args_is_help=True, add_completion=False)

_TELLS = {
    "hits": "decisions that were remembered",
    "misses": "decisions that were made",
    "uncacheable_input": "  made and not kept: a Rego policy reads what no attributes determine",
    "uncacheable_failure": "  made and not kept: a Rego policy failed, or the check service could not be asked",
    "uncacheable_answer": "  made and not kept: the check service did not say for how long",
    "entries": "decisions held",
    "bytes": "bytes that they take",
    "tokens": "verified tokens held",
}


class NoSidecar(LookupError):
    """This state has no sidecar of that workload, or none whose Envoy has decided anything."""


@app.callback()
def _group() -> None:
    """Keeps `cache` a command of a group, which will have more."""


@app.command()
def cache(
    state: State,
    workload: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="Whose sidecar.")],
    output: OutputOption = Output.TEXT,
) -> None:
    """Shows what a sidecar's decision cache did since its Envoy started, worker by worker."""
    try:
        workers = dict(read_counters(_read(state, workload)))
    except NoSidecar as error:
        print_error(error)
        raise typer.Exit(1) from None
    total = Counter[str]()
    for counted in workers.values():
        total.update(counted)
    if output is Output.JSON:
        print_json({"workload": workload, "total": {name: total[name] for name in _TELLS}, "workers": workers})
        return
    asked = total["hits"] + total["misses"]
    out.print(f"{workload}: {total['hits'] / asked:.1%} of {asked} decisions were remembered" if asked else workload)
    out.print(_table(workers, total))


def _read(state: Path, workload: str) -> bytes:
    namespace, _, name = workload.partition("/")
    file = sidecar_state(state, namespace, name) / "spool" / "caches"
    try:
        return file.read_bytes()
    except OSError as error:
        running = [str(each.relative_to(state / "sidecars")) for each in sorted((state / "sidecars").glob("*/*"))]
        there = f"there are {', '.join(running)}" if running else "there are none in this state"
        raise NoSidecar(f"no sidecar of {workload} has decided anything: {there} ({error})") from error


def _table(workers: dict[int, dict[str, int]], total: Counter[str]) -> Table:
    table = Table("", *(f"worker {worker}" for worker in workers), "all", box=None)
    for name, tells in _TELLS.items():
        table.add_row(tells, *(str(counted[name]) for counted in workers.values()), str(total[name]))
    return table
