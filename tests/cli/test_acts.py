"""Acts of the control plane as records."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.starts import start_contents

from peltast.audit.spool import SpoolReader, spool_folders
from peltast.authz._engine import first_link, verify_frames
from peltast.cli import acts
from peltast.identity.acts import Act


def test_an_act_is_a_record_of_who_did_what_to_what(tmp_path: Path) -> None:
    log = acts.ActLog(tmp_path, "spiffe://a/control", start_contents)
    log.report(Act("", "svid.issue", "7", allowed=False, detail="no"))
    log.close()
    (folder,) = spool_folders(tmp_path)
    records, _, _ = verify_frames(0, first_link(), SpoolReader(folder).read())
    assert [record.kind for record in records] == ["genesis", "act", "close"]
    expected = {"actor": b"spiffe://a/control", "action": b"svid.issue", "object": b"7", "effect": b"deny"}
    assert records[1].fields == {**expected, "detail": b"no"}


def test_a_detail_of_any_length_is_recorded_in_a_record_that_readers_take(tmp_path: Path) -> None:
    acts.ActLog(tmp_path, "a", start_contents).report(
        Act("", "configuration.refuse", "1", allowed=False, detail="x" * 10_000_000)
    )
    (folder,) = spool_folders(tmp_path)
    records, _, _ = verify_frames(0, first_link(), SpoolReader(folder).read())
    detail = records[1].fields["detail"]
    assert isinstance(detail, bytes)
    assert detail.startswith(b"x" * acts.MAX_DETAIL)
    assert detail.endswith(b"and 9934464 more characters")


def test_an_act_that_cannot_be_recorded_is_told_to_whoever_wants_to_do_it(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where a folder should be")
    log = acts.ActLog(tmp_path / "spool", "a", start_contents)
    with pytest.raises(OSError, match="File exists"):
        log.report(Act("", "svid.issue", "7", allowed=True))
