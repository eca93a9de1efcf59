"""Changes of the configuration as acts."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from peltast.cli.changes import ChangeLog, owner_of
from peltast.identity.acts import Act
from peltast.policies.snapshot import Snapshot, load

ME = f"file:{pwd.getpwuid(os.getuid()).pw_name}"

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: browse, namespace: bookshop}
spec: {action: %s, rules: [{}]}
"""


class Record(list[Act]):
    full = False

    def report(self, act: Act) -> None:
        if self.full:
            raise OSError("the spool is full")
        self.append(act)


def configured(folder: Path, **policies: str) -> Snapshot:
    """A folder with a policy a file, by its name and its action."""
    for old in folder.iterdir():
        old.unlink()
    for name, action in policies.items():
        (folder / f"{name}.yaml").write_text((POLICY % action).replace("browse", name))
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    return load(files, "cluster.local", 1)


def told(record: Record) -> list[tuple[str, str]]:
    taken = [(act.actor, act.object) for act in record]
    assert all((act.action, act.allowed) == ("configuration.changed", True) for act in record)
    record.clear()
    return taken


def test_an_act_tells_who_changed_what_and_how_over_restarts(tmp_path: Path) -> None:
    folder, kept, record = tmp_path / "mesh", tmp_path / "kept.json", Record()
    folder.mkdir()
    ChangeLog(folder, kept, record.report).take(configured(folder, browse="ALLOW", buy="ALLOW"))
    assert told(record) == [(ME, "AuthorizationPolicy/bookshop/browse"), (ME, "AuthorizationPolicy/bookshop/buy")]
    restarted = ChangeLog(folder, kept, record.report)
    restarted.take(configured(folder, browse="ALLOW", buy="ALLOW"))
    assert record == []
    restarted.take(configured(folder, browse="DENY"))
    assert "-  action: ALLOW\n+  action: DENY" in record[0].detail
    assert told(record) == [(ME, "AuthorizationPolicy/bookshop/browse"), ("file:?", "AuthorizationPolicy/bookshop/buy")]
    assert kept.stat().st_mode & 0o777 == 0o600


def test_what_could_not_be_recorded_is_reported_later(tmp_path: Path) -> None:
    folder, kept, record = tmp_path / "mesh", tmp_path / "kept.json", Record()
    folder.mkdir()
    log = ChangeLog(folder, kept, record.report)
    record.full = True
    log.take(configured(folder, browse="ALLOW"))
    record.full = False
    log.take(configured(folder, browse="DENY"))
    assert told(record) == [(ME, "AuthorizationPolicy/bookshop/browse")]


def test_the_file_that_was_written_last_says_who_it_was(tmp_path: Path) -> None:
    for name, uid, time in (("a.yaml", 0, 1), ("a.rego", 54321, 2), ("a.json", 0, 1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time, time))
        if os.geteuid() == 0:
            os.chown(tmp_path / name, uid, uid)
    expected = "file:54321" if os.geteuid() == 0 else ME
    assert owner_of(tmp_path, ["a.yaml", "a.rego", "a.json", "gone.rego"]) == expected
    assert owner_of(tmp_path, ["gone.rego"]) == "file:?"
