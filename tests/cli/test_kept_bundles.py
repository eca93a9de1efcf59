"""The last good bundles on disk."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from peltast.cli.kept_bundles import KeptBundles
from peltast.policies.rego_sources import BundleLocation

SECOND = timedelta(seconds=1)


def location(policy: str, url: str = "https://b.test/b", delay: int = 1) -> BundleLocation:
    return BundleLocation(policy, url, SECOND, (delay * SECOND, delay * SECOND), 0 * SECOND, None)


def test_an_archive_is_kept_for_each_policy_and_url_and_is_private(tmp_path: Path) -> None:
    kept = KeptBundles(tmp_path / "bundles")
    one, other, elsewhere = location("a/a"), location("a/b"), location("a/a", "https://c.test/b")
    assert kept.read(one) is None
    kept.keep(one, b"1")
    kept.keep(other, b"2")
    kept.keep(one, b"3")
    assert [kept.read(each) for each in (one, other, elsewhere)] == [b"3", b"2", None]
    assert kept.read(location("a/a", delay=9)) == b"3", "how often it is asked for makes no other bundle"
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "bundles").iterdir()} == {0o600}


def test_what_is_of_gone_policies_is_removed(tmp_path: Path) -> None:
    kept = KeptBundles(tmp_path / "bundles")
    kept.drop_others([])
    kept.keep(location("a/a"), b"1")
    kept.keep(location("a/b"), b"2")
    kept.drop_others([location("a/b", delay=9)])
    assert [kept.read(location(name)) for name in ("a/a", "a/b")] == [None, b"2"]
    assert len(list((tmp_path / "bundles").iterdir())) == 1


def test_what_cannot_be_kept_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "bundles").write_bytes(b"in the way")
    KeptBundles(tmp_path / "bundles").keep(location("a/a"), b"1")
