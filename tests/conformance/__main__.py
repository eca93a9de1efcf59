"""`make conformance`: OPA's compliance cases on both tiers, compared with authz/engine/unsupported.txt.

The cases are those of OPA's Go module, in Go's module cache. `--write` writes the list anew.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from conformance.cases import Case, read
from conformance.runner import REFUSED, run

OPA = "github.com/open-policy-agent/opa@v1.22.0"
ROOT = Path(__file__).parents[2]
LIST = ROOT / "authz/engine/unsupported.txt"


def main() -> int:
    """The exit status: 0 where exactly what is listed fails."""
    if shutil.which("go") is None:
        print("conformance: skipped, for there is no Go, whose module cache holds OPA's cases")
        return 0
    cases = list(read(opa_module() / "v1/test/cases/testdata/v1"))
    print(f"regorus by itself: {passing(cases, None)} of {len(cases)} cases pass")
    failures = {case.note: reason for case, reason in run(cases, "check") if reason is not None}
    print(f"check tier: {len(cases) - len(failures)} of {len(cases)} cases pass")
    wrong = sidecar(cases)
    if "--write" in sys.argv:
        write(failures)
    return int(compare(failures) or wrong)


def passing(cases: list[Case], tier: str | None) -> int:
    """How many cases pass."""
    return sum(reason is None for _, reason in run(cases, tier))


def opa_module() -> Path:
    """OPA's module in Go's cache, fetched where it is not there."""
    answer = subprocess.run(["go", "mod", "download", "-json", OPA], capture_output=True, check=True, text=True)
    return Path(json.loads(answer.stdout)["Dir"])


def sidecar(cases: list[Case]) -> bool:
    """Whether the sidecar tier answers any case that it admits wrongly."""
    outcomes = list(run(cases, "sidecar"))
    wrong = [(case.note, reason) for case, reason in outcomes if reason not in (None, REFUSED)]
    refused = sum(reason == REFUSED for _, reason in outcomes)
    print(f"sidecar tier: {len(cases) - refused} of {len(cases)} cases are admitted, {len(wrong)} answered wrongly")
    for note, reason in wrong:
        print(f"  wrong: {note}: {reason}")
    return bool(wrong)


def listed() -> dict[str, str]:
    """The cases that are known not to pass, each with its reason."""
    lines = LIST.read_text().splitlines() if LIST.exists() else []
    return dict(line.rsplit("\t", 1) for line in lines)


def compare(failures: dict[str, str]) -> bool:
    """Whether the list is wrong: a case fails that it does not name, or passes that it names."""
    known = listed()
    for note in sorted(failures.keys() - known.keys()):
        print(f"  fails and is not in {LIST.name}: {note}: {failures[note]}")
    for note in sorted(known.keys() - failures.keys()):
        print(f"  passes, and is in {LIST.name}: {note}")
    return failures.keys() != known.keys()


def write(failures: dict[str, str]) -> None:
    """Writes the list: a line a case, its note and the reason, as it was."""
    known = listed()
    lines = [f"{note}\t{known.get(note) or one_line(reason)}" for note, reason in sorted(failures.items())]
    LIST.write_text("\n".join(lines) + "\n")
    print(f"{LIST}: {len(lines)} cases; {Counter(note.split('/')[0] for note in failures).most_common(8)}")


def one_line(reason: str) -> str:
    """The last line of a reason that says something, without its place."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    last = re.sub(r"^(?:test-\d+\.rego|query):\d+: |^error: ", "", lines[-1] if lines else "")
    return last[:160].replace("\t", " ")


if __name__ == "__main__":
    sys.exit(main())
