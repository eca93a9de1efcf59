"""``peltast validate``: whether a folder would be taken, without a mesh."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import typer

from peltast.authz.admission import RegoAdmission
from peltast.authz.bundle_fetcher import fetch_bundles
from peltast.authz.revision import Revision, compile_revision
from peltast.cli.console import Output, out, print_json, print_problems
from peltast.cli.options import Configuration, OutputOption, TrustDomainOption
from peltast.cli.settings import DEFAULT_TRUST_DOMAIN
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.snapshot import load
from peltast.policies.sources.folder import read_folder

__all__ = ["admitted_revision", "app"]


app = typer.Typer(add_completion=False)


@app.command()
def validate(
    configuration: Configuration,
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    output: OutputOption = Output.TEXT,
) -> None:
    """Checks a folder of YAML and Rego as the mesh would: every problem with file, line and field; exit 1 if any."""
    try:
        revision = asyncio.run(admitted_revision(configuration, trust_domain))
    except InvalidConfiguration as invalid:
        if output is Output.JSON:
            print_json({"valid": False, "problems": [asdict(problem) for problem in invalid.problems]})
        else:
            print_problems(invalid)
        raise typer.Exit(1) from None
    if output is Output.JSON:
        print_json({"valid": True, "problems": [], **_summary(revision)})
    else:
        _print_summary(revision)


async def admitted_revision(configuration: Path, trust_domain: str) -> Revision:
    """The revision that `configuration` compiles to, its Rego checked as it would be before it is put in force.

    Bundles are fetched.

    Raises:
        InvalidConfiguration: see there.
    """
    snapshot = await fetch_bundles(load(read_folder(configuration), trust_domain, 1))
    async with RegoAdmission() as admission:
        return compile_revision(await admission.check(snapshot))


def _summary(revision: Revision) -> dict[str, object]:
    snapshot = revision.snapshot
    return {
        "version": snapshot.version,
        "resources": dict(Counter(resource.kind for resource in snapshot.resources)),
        "workloads": {name: workload.principal for name, workload in snapshot.workloads.items()},
        "rego": {
            name: {"tier": source.tier.value, "why": source.tier_reason} for name, source in snapshot.rego.items()
        },
    }


def _print_summary(revision: Revision) -> None:
    snapshot = revision.snapshot
    kinds = Counter(resource.kind for resource in snapshot.resources)
    out.print("[green]valid[/green]: " + ", ".join(f"{number} {kind}" for kind, number in kinds.items()))
    for name, workload in snapshot.workloads.items():
        out.print(f"  workload {name} is {workload.principal}")
    for name, source in snapshot.rego.items():
        why = f"  Rego {name} is decided in the {source.tier} tier: {source.tier_reason}"
        out.print(why, markup=False)
