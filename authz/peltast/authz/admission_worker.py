"""The child of `admission.py`: reads questions about Rego policies, answers each with a line of JSON."""

from __future__ import annotations

import json
import resource
import sys
from enum import Enum
from typing import Any, BinaryIO

from peltast.authz._engine import LoadError, Program, data_read

__all__ = ["Question", "main"]

MEMORY_LIMIT_BYTES = 1024 * 1024 * 1024


class Question(Enum):
    """What is asked about a document; on the wire its value, the document's length, and the document."""

    READ = b"R"
    """Where modules, given with their tier, can tell what data there is."""
    LOAD = b"L"
    """Whether a program can be loaded."""


def main(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answers until the questions end."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while head := questions.read(9):
        document = questions.read(int.from_bytes(head[1:], "big"))
        answers.write(json.dumps(answer(Question(head[:1]), document)).encode() + b"\n")
        answers.flush()


def answer(question: Question, document: bytes) -> dict[str, Any]:
    """What the engine says, or why it refuses."""
    try:
        return {"answer": ask_engine(question, document), "refusal": None}
    except LoadError as error:
        policy, file, line, reason = error.args
        return {"answer": None, "refusal": {"policy": policy, "file": file, "line": line, "reason": reason}}


def ask_engine(question: Question, document: bytes) -> list[list[str]] | None:
    """Paths of data, or nothing where a program loads."""
    if question is Question.LOAD:
        Program.load(document)
        return None
    outline = json.loads(document)
    return data_read(outline["tier"], outline["modules"])


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
