"""What the control plane tells the processes of the check service."""

from __future__ import annotations

from peltast.authz.protos.check_pb2 import CheckRevision, CheckWorkload
from peltast.authz.revision import Revision

__all__ = ["check_revision"]


def check_revision(revision: Revision) -> CheckRevision:
    """What of `revision` the processes of the check service need."""
    workloads = [
        CheckWorkload(
            principal=workload.principal,
            address=workload.address,
            program=revision.programs[name],
            keys=revision.keys[name],
        )
        for name, workload in revision.snapshot.workloads.items()
    ]
    return CheckRevision(workloads=workloads, revocations=revision.revocations)
