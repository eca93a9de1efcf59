"""``peltast policy``: the policies of a folder at work, without a mesh."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, TextIO

import typer
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf.json_format import Parse, ParseError

from peltast.authz._engine import Decision
from peltast.authz.check.documents import check_revision
from peltast.authz.check.service import CheckService, UnknownDestination
from peltast.authz.key_fetcher import KeyFetcher, KeyStatus
from peltast.authz.revision import Revision
from peltast.cli.console import err, print_json, print_problems
from peltast.cli.options import TrustDomainOption
from peltast.cli.settings import DEFAULT_TRUST_DOMAIN
from peltast.cli.validate import admitted_revision
from peltast.policies.problems import InvalidConfiguration

__all__ = ["app"]

app = typer.Typer(help="Policies at work, without a mesh.", no_args_is_help=True, add_completion=False)

MAX_LINE = 1024 * 1024


@app.callback()
def _group() -> None:
    """Keeps `decide` a command of a group, which will have more."""


@app.command()
def decide(
    config: Annotated[Path, typer.Option(help="Folder of YAML and Rego.", exists=True, file_okay=False)],
    requests: Annotated[typer.FileText, typer.Argument(help="CheckRequests as JSON lines; - is standard input.")] = (
        "-"  # type: ignore[assignment]
    ),
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
) -> None:
    """Decides requests as sidecars would: CheckRequests (envoy.service.auth.v3) as JSON lines in, decisions out.

    A request's `attributes.destination.principal` names the workload it is for.
    """
    try:
        revision = asyncio.run(_revision_with_keys(config, trust_domain))
    except InvalidConfiguration as invalid:
        print_problems(invalid)
        raise typer.Exit(1) from None
    service = CheckService(counts=True)
    service.take(check_revision(revision))
    if not _decide_lines(service, requests):
        raise typer.Exit(1)


async def _revision_with_keys(config: Path, trust_domain: str) -> Revision:
    """The revision of `config`, with the keys that are to be fetched: without them, their tokens are refused."""
    revision = await admitted_revision(config, trust_domain)
    if not revision.key_sources:
        return revision
    async with KeyFetcher(report=_print_key_status) as keys:
        await keys.follow(revision.key_sources, max(source.timeout for source in revision.key_sources))
        return revision.with_keys(keys.in_force())


def _print_key_status(status: KeyStatus) -> None:
    if status.error is not None:
        err.print(f"no keys of {status.source.issuer} from {status.source.uri}: {status.error}", markup=False)


def _decide_lines(service: CheckService, lines: TextIO) -> bool:
    """Answers every line with a line; tells whether all could be decided."""
    sound, number = True, 0
    while line := lines.readline(MAX_LINE):
        number += 1
        if not line.strip():
            continue
        try:
            request = Parse(line, CheckRequest())
            print_json(_as_json(service.decide(request)))
        except (ParseError, ValueError, UnknownDestination) as error:
            sound = False
            print_json({"line": number, "error": str(error)})
            err.print(f"line {number} is no CheckRequest that can be decided", markup=False)
    sys.stdout.flush()
    return sound


def _as_json(decision: Decision) -> dict[str, object]:
    return {
        "effect": "allow" if decision.allowed else "deny",
        "status": decision.status,
        "policy": decision.policy,
        "rule": decision.rule,
        "reason": decision.reason,
        "detail": decision.detail,
        "source": decision.decided_by,
        "program": decision.program,
        "cacheable": decision.cacheable,
        "body": decision.body,
        "request_headers_to_set": decision.request_headers_to_set,
        "request_headers_to_remove": decision.request_headers_to_remove,
        "response_headers_to_add": decision.response_headers_to_add,
        "query_parameters_to_set": decision.query_parameters_to_set,
        "query_parameters_to_remove": decision.query_parameters_to_remove,
        "dynamic_metadata": json.loads(decision.dynamic_metadata or "null"),
        "prints": decision.prints.splitlines(),
        "annotations": [json.loads(line) for line in decision.annotations.splitlines()],
        "shadow": decision.shadow,
    }
