"""The descriptors by which a RegoPolicy reads messages of gRPC: a file beside it, part of what the snapshot is."""

from __future__ import annotations

import pytest

from peltast.policies.problems import InvalidConfiguration
from peltast.policies.rego_sources import MAX_DESCRIPTOR_BYTES
from peltast.policies.snapshot import Snapshot, load

POLICY = b"""
apiVersion: peltast.dev/v1
kind: RegoPolicy
metadata: {name: r, namespace: shop}
spec: {entrypoint: data.a.b, module: package a, protoDescriptor: api.pb}
"""


def snapshot(files: dict[str, bytes]) -> Snapshot:
    return load({"team/p.yaml": POLICY, **files}, "cluster.local", 1)


def test_descriptors_are_found_beside_their_policy() -> None:
    assert snapshot({"team/api.pb": b"\x01", "api.pb": b"\x02"}).rego["shop/r"].descriptors == b"\x01"


def test_other_descriptors_are_another_configuration() -> None:
    versions = {snapshot({"team/api.pb": content}).version for content in (b"\x01", b"\x02", b"\x01")}
    assert len(versions) == 2


@pytest.mark.parametrize(
    ("files", "says"),
    [({}, "there is no file team/api.pb"), ({"team/api.pb": b"x" * (MAX_DESCRIPTOR_BYTES + 1)}, "at most 1048576")],
)
def test_descriptors_that_are_not_there_or_too_long_are_refused(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        snapshot(files)
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.field) == ("team/p.yaml", 5, "spec.protoDescriptor")
    assert says in problem.allowed
