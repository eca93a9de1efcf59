"""What loading a bundle with 50 MB of data costs: CPU time, as a multiple of parsing that data as JSON and no more.

And how much of it sidecars get whose policy reads a part of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.bundles import SECRET, signed, targz

from peltast.authz.admission import RegoAdmission
from peltast.authz.compile import compile_rego
from peltast.policies.snapshot import load
from peltast.policies.sources.archive import unpack
from peltast.policies.sources.bundle import read_bundle
from peltast.policies.sources.bundle_signature import Verification, VerificationKey

USERS = 270_000
ROUNDS = 1
MAX_RATIO = 5.0
MAX_SHARE = 0.01
MODULE = b"package app\n\nallow if data.regions[input.parsed_path[0]]\n"
POLICY = b"""
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: rules, namespace: shop}
spec: {entrypoint: data.app.allow, bundle: {file: b.tar.gz}}
"""
KEY = Verification((VerificationKey("k", "HS256", SECRET),))


def main() -> int:
    """Prints the ratios; 1 where a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a limit is exceeded")
    check = parser.parse_args().check
    data = users()
    files = {"app/rules.rego": MODULE, "data.json": data}
    plain, sealed = targz(files), targz(signed(files))
    print(f"{len(data) / 1e6:.0f} MB of data, {len(plain) / 1e6:.1f} MB as an archive")
    rounds = [
        (
            seconds(lambda: json.loads(data)),
            seconds(lambda: read_bundle(unpack(plain), None)),
            seconds(lambda: read_bundle(unpack(sealed), KEY)),
        )
        for _ in range(ROUNDS)
    ]
    ratio, of_signed = (median(each[column] / each[0] for each in rounds) for column in (1, 2))
    print(f"plain JSON parse        {median(each[0] for each in rounds):.2f} s")
    print(f"bundle                  {ratio:.2f} x (at most {MAX_RATIO:g})")
    print(f"bundle with a signature {of_signed:.2f} x")
    share = asyncio.run(program_bytes(plain)) / len(data)
    print(f"of its data in a program that reads one member: {share:.4%} (at most {MAX_SHARE:.0%})")
    return int(check and (ratio > MAX_RATIO or share > MAX_SHARE))


async def program_bytes(archive: bytes) -> int:
    """The size of what a sidecar gets for a policy with this bundle."""
    snapshot = load({"p.yaml": POLICY, "b.tar.gz": archive}, "cluster.local", 1)
    async with RegoAdmission() as admission:
        (source,) = (await admission.check(snapshot)).rego.values()
    return len(compile_rego(source))


def users() -> bytes:
    """Users with roles, teams and limits, sorted and without spaces, so that bytes and value have one hash."""
    chance = random.Random(1)
    made = {
        f"user{number:06}": {
            "limit": number,
            "name": "x" * 60,
            "roles": [f"role{chance.randrange(99)}" for _ in range(4)],
            "team": {"id": number % 50, "name": f"team{number % 50}"},
        }
        for number in range(USERS)
    }
    return json.dumps({"regions": {"eu": True}, "users": made}, separators=(",", ":"), sort_keys=True).encode()


def seconds(work: Callable[[], object]) -> float:
    """The CPU time of `work`."""
    before = time.process_time()
    work()
    return time.process_time() - before


if __name__ == "__main__":
    sys.exit(main())
