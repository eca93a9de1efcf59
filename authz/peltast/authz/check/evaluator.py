"""A child of the check service: evaluates policies of the check tier, one request after the other.

What they call may take longer than their time, or more memory than there is, with nothing in this process to stop it.
So it is a process: `pool.py` kills it alone.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from typing import BinaryIO

from peltast.authz.check.frames import Kind, frame, read_frame_blocking
from peltast.authz.check.service import CheckService
from peltast.authz.protos.check_pb2 import CheckRevision


def main(frames: BinaryIO, answers: BinaryIO, memory_bytes: int) -> None:
    """Answers until the messages end, in so much address space."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    evaluator = _Evaluator(answers)
    while received := read_frame_blocking(frames):
        kind, payload = received
        if kind is Kind.REVISION:
            evaluator.take(payload)
        else:
            evaluator.answer(payload, sidecar=kind is Kind.SIDECAR_QUESTION)


class _Evaluator:
    def __init__(self, answers: BinaryIO) -> None:
        self._service = CheckService()
        self._answers = answers
        self._writing = threading.Lock()
        self._loading: threading.Thread | None = None

    def take(self, revision: bytes) -> None:
        """Loads in a thread of its own: questions go on by the last revision meanwhile."""
        if self._loading is not None:
            self._loading.join()
        self._loading = threading.Thread(target=self._load, args=(revision,))
        self._loading.start()

    def _load(self, revision: bytes) -> None:
        try:
            self._service.take(CheckRevision.FromString(revision))
        except BaseException:
            os._exit(1)  # what cannot load a revision must not decide by the last one
        self._write(Kind.IN_FORCE, b"")

    def answer(self, question: bytes, *, sidecar: bool) -> None:
        try:
            response = self._service.answer(question, sidecar=sidecar)
        except (LookupError, ValueError) as error:
            self._write(Kind.NO_ANSWER, str(error).encode())
        else:
            self._write(Kind.ANSWER, response.SerializeToString())

    def _write(self, kind: Kind, payload: bytes) -> None:
        with self._writing:
            self._answers.write(frame(kind, payload))
            self._answers.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))
