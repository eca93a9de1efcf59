"""`peltast demo` as a new user runs it."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

from support.running import BASE_PORT, PELTAST

BOOKSHOP = Path(__file__).parents[2] / "deploy" / "samples" / "bookshop"


def test_the_demo_decides_everything_as_expected_and_writes_its_report(tmp_path: Path) -> None:
    command = [*PELTAST, "demo", str(BOOKSHOP), "--report", str(tmp_path), "--base-port", str(BASE_PORT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "✗" not in result.stdout
    attempts = result.stdout.count("✓")
    assert attempts >= 15
    assert f"{attempts} attempts, none retried = {attempts} rows" in result.stdout
    report = json.loads((tmp_path / "access.json").read_text())
    assert sum(row["requests"] for row in report["tables"]["access"]["rows"]) == attempts
    plaintext = json.loads((tmp_path / "plaintext.json").read_text())
    assert [(row["source"], row["effect"], row["reason"]) for row in plaintext["tables"]["plaintext"]["rows"]] == [
        ("127.0.0.1", "deny", "plaintext")
    ]
    with (tmp_path / "access.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["reason"] for row in rows] == [row["reason"] for row in report["tables"]["access"]["rows"]]
    assert b"<h1>Access by identity</h1>" in (tmp_path / "access.html").read_bytes()
