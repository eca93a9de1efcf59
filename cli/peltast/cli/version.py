"""``peltast version``."""

from __future__ import annotations

import importlib.metadata
import platform

import typer

from peltast.audit.store.embedded import PostgresUnusable, embedded_version
from peltast.cli.console import Output, out, print_json
from peltast.cli.options import OutputOption
from peltast.proxy.sidecar.binary import EnvoyUnusable, find_envoy

__all__ = ["app"]


app = typer.Typer(add_completion=False)


@app.command()
def version(output: OutputOption = Output.TEXT) -> None:
    """Shows the versions of Peltast and of the parts that it runs."""
    parts = {
        "peltast": importlib.metadata.version("peltast"),
        "python": platform.python_version(),
        "envoy": _envoy(),
        "postgresql": _postgresql(),
    }
    if output is Output.JSON:
        print_json(parts)
        return
    for name, text in parts.items():
        out.print(f"{name:<11} {text}", markup=False)


def _envoy() -> str:
    try:
        envoy = find_envoy()
    except EnvoyUnusable as error:
        return f"unusable: {error}"
    return f"{envoy.version} (sha256:{envoy.sha256[:16]}, {envoy.path})"


def _postgresql() -> str:
    try:
        return f"{embedded_version()} (embedded)"
    except PostgresUnusable as error:
        return f"unusable: {error}"
