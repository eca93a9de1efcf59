from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROTOS = sorted(proto.relative_to(ROOT) for proto in ROOT.glob("*/peltast/*/protos/*.proto"))


def test_protos_are_found() -> None:
    assert {proto.name for proto in PROTOS} >= {"ca.proto", "join.proto", "collector.proto"}


@pytest.mark.parametrize("proto", PROTOS, ids=lambda proto: proto.name)
def test_generated_code_is_what_its_proto_generates_now(proto: Path, tmp_path: Path) -> None:
    include = proto.parts[0]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{include}", str(proto)]
    command += [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    for suffix in ("_pb2.py", "_pb2.pyi"):
        name = proto.with_name(proto.stem + suffix)
        generated = tmp_path / name.relative_to(include)
        assert (ROOT / name).read_text() == generated.read_text(), f"{name} is out of date: make protos"


def test_no_generated_code_is_left_of_a_proto_that_is_gone() -> None:
    generated = {file.relative_to(ROOT) for file in ROOT.glob("*/peltast/*/protos/*_pb2*.py*")}
    expected = {proto.with_name(proto.stem + suffix) for proto in PROTOS for suffix in ("_pb2.py", "_pb2.pyi")}
    assert generated == expected
