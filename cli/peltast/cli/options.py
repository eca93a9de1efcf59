"""Options that several commands take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from spiffe import TrustDomain
from spiffe.spiffe_id.spiffe_id import TrustDomainError

from peltast.audit.sinks import Sink, sink_of
from peltast.audit.store.retention import SHORTEST_RETENTION_DAYS
from peltast.cli.console import Output
from peltast.cli.settings import REDIS_VARIABLE

__all__ = [
    "BasePort",
    "CheckpointSinks",
    "Concurrency",
    "Configuration",
    "OutputOption",
    "RedisUrl",
    "RetentionDays",
    "SpoolBytes",
    "State",
    "StoreDatabase",
    "TrustDomainOption",
    "sinks_of",
]


def _trust_domain(name: str) -> str:
    try:
        return TrustDomain(name).name
    except TrustDomainError as error:
        raise typer.BadParameter(f"{name!r}: {error}") from error


_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def _redis_url(url: str | None) -> str | None:
    if url is not None and not url.startswith(_REDIS_SCHEMES):
        raise typer.BadParameter("a URL that begins with redis://, rediss:// or unix:// is expected")
    return url


Configuration = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of YAML and Rego.", exists=True, file_okay=False)
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="For people, or for programs.")]
State = Annotated[Path, typer.Option(help="Folder for keys, database, spools and logs.", file_okay=False)]
StoreDatabase = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="A PostgreSQL (16 or later) that you run, as the store's owner. Default: one is embedded.",
    ),
]
TrustDomainOption = Annotated[
    str, typer.Option(metavar="NAME", help="SPIFFE trust domain of the mesh.", callback=_trust_domain)
]
BasePort = Annotated[
    int,
    typer.Option(min=1024, max=65000, help="The control plane's ports on 127.0.0.1: this one and the four after it."),
]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis",
        metavar="URL",
        envvar=REDIS_VARIABLE,
        callback=_redis_url,
        help="Count here what is counted for many (redis://, rediss://, unix://), not in memory.",
    ),
]
Concurrency = Annotated[int, typer.Option(min=1, max=64, help="Worker threads of each sidecar's Envoy.")]
RetentionDays = Annotated[
    int | None,
    typer.Option(
        min=SHORTEST_RETENTION_DAYS,
        metavar="N",
        help="Drop audit records more than N days back, each day. Default: never.",
    ),
]
CheckpointSinks = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoints",
        metavar="SINK",
        help="Where signed checkpoints go besides the store; may be given more than once: folder:PATH, "
        "s3://BUCKET/PREFIX, syslog:HOST:PORT, syslog+tls:HOST:PORT. Default: the folder checkpoints of the state.",
    ),
]
SpoolBytes = Annotated[
    int, typer.Option(min=1 << 20, help="Audit records a sidecar holds before it refuses requests, in bytes.")
]


def sinks_of(state: Path, words: Sequence[str] | None) -> dict[str, Sink]:
    """The sinks that `words` name, or the folder of the state."""
    try:
        return {word: sink_of(word, os.environ) for word in words or (f"folder:{state / 'checkpoints'}",)}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--checkpoints") from error
