"""The child of `admission.py`: reads programs, answers each with a line of JSON: null, or why it cannot be loaded."""

from __future__ import annotations

import json
import resource
import sys
from typing import BinaryIO

from peltast.authz._engine import LoadError, Program

MEMORY_LIMIT_BYTES = 1024 * 1024 * 1024


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the requests end."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while length := requests.read(8):
        document = requests.read(int.from_bytes(length, "big"))
        answers.write(json.dumps(refusal(document)).encode() + b"\n")
        answers.flush()


def refusal(document: bytes) -> dict[str, object] | None:
    """Why `document` cannot be loaded; none where it can."""
    try:
        Program.load(document)
    except LoadError as error:
        policy, file, line, reason = error.args
        return {"policy": policy, "file": file, "line": line, "reason": reason}
    return None


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
