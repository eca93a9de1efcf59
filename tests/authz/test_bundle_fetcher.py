"""Fetched bundles: what is asked and when, which bundle holds; then the same over real HTTP."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundle_server import BundleServer
from support.bundles import FILES, SECRET, manifest, signed, targz
from support.running import eventually

from peltast.authz import bundle_fetcher
from peltast.authz.bundle_fetcher import BundleFetcher, BundleStatus, fetch_bundles
from peltast.authz.fetched_bundle import FetchedBundle, takes_long_polls
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.rego_sources import BundleLocation
from peltast.policies.snapshot import load
from peltast.policies.sources.bundle import Bundle, read_bundle
from peltast.policies.sources.bundle_signature import Verification, VerificationKey

NOW = datetime(2026, 11, 22, tzinfo=UTC)
SECOND = timedelta(seconds=1)
PATIENCE = 20 * SECOND
BUNDLE = read_bundle(FILES, None)

spreads = st.floats(0, 1)


def location(url: str = "https://b.test/b", wait: int = 0, timeout: float = 5, **more: Any) -> BundleLocation:
    delays = more.get("delays", (10 * SECOND, 20 * SECOND))
    return BundleLocation("shop/rules", url, timeout * SECOND, delays, wait * SECOND, more.get("verification"))


def revision(name: str) -> bytes:
    return targz({**FILES, ".manifest": manifest(revision=name)})


def took(where: BundleLocation, spread: float = 0, *, long_polls: bool = False) -> FetchedBundle:
    return FetchedBundle(NOW).succeeded(BUNDLE, '"1"', where, NOW, NOW, spread, long_polls=long_polls)


# What is asked, and when ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "wait", "headers"),
    [
        (FetchedBundle(NOW), 0, {"prefer": "modes=snapshot"}),
        (FetchedBundle(NOW), 30, {"prefer": "modes=snapshot;wait=30"}),
        (took(location()), 0, {"prefer": "modes=snapshot", "if-none-match": '"1"'}),
        (took(location(), long_polls=True), 30, {"prefer": "modes=snapshot;wait=30", "if-none-match": '"1"'}),
        (took(location(), long_polls=False), 30, {"prefer": "modes=snapshot", "if-none-match": '"1"'}),
    ],
    ids=["first", "first of long polls", "not the same", "long poll", "a server that takes no long polls"],
)
def test_what_is_asked(state: FetchedBundle, wait: int, headers: dict[str, str]) -> None:
    assert state.headers(location(wait=wait)) == headers


@pytest.mark.parametrize(
    ("content_type", "takes"),
    [
        ("application/vnd.openpolicyagent.bundles", True),
        ("application/vnd.openpolicyagent.bundles; v=1", True),
        ("application/gzip", False),
        ("", False),
    ],
)
def test_a_server_tells_by_its_content_type_that_it_takes_long_polls(content_type: str, *, takes: bool) -> None:
    assert takes_long_polls(content_type) == takes


@given(spreads, st.booleans())
def test_a_bundle_is_asked_for_between_the_delays(spread: float, unchanged: bool) -> None:
    where = location()
    state = took(where, spread)
    if unchanged:
        state = state.unchanged(where, NOW, NOW, spread)
    assert NOW + 10 * SECOND <= state.next_fetch <= NOW + 20 * SECOND


@given(st.floats(0, 60))
def test_a_long_poll_follows_the_other_and_never_within_a_second(took_seconds: float) -> None:
    where, now = location(wait=30), NOW + took_seconds * SECOND
    state = FetchedBundle(NOW).succeeded(BUNDLE, "", where, NOW, now, 0, long_polls=True)
    assert state.next_fetch == max(now, NOW + SECOND)


@given(st.lists(spreads, min_size=1, max_size=12))
def test_failures_are_spaced_out_bounded_and_leave_the_last_good_bundle(failures: list[float]) -> None:
    where = location()
    state = took(where)
    for number, spread in enumerate(failures):
        state = state.failed("x" * 9999, where, NOW, spread)
        delay = (state.next_fetch - NOW).total_seconds()
        assert min(2**number, 20) * 0.79 < delay <= min(2**number, 20)
        assert (state.bundle, state.etag, len(state.error or "")) == (BUNDLE, '"1"', 500)
    assert state.unchanged(where, NOW, NOW, 0).error is None


# Over HTTP ------------------------------------------------------------------------------------------------------------


def revision_of(found: Bundle | str) -> str:
    return found.revision if isinstance(found, Bundle) else found


async def test_bundles_are_fetched_changed_ones_again_and_failures_leave_the_last_good_one() -> None:
    statuses: list[BundleStatus] = []
    changes: list[int] = []
    saved: dict[BundleLocation, bytes] = {}
    fetcher = BundleFetcher(
        changed=lambda: changes.append(1),
        report=statuses.append,
        save=lambda where, archive: saved.update({where: archive}),
    )
    async with BundleServer(revision("one")) as server, fetcher:
        where = location(server.url, delays=(0.01 * SECOND, 0.02 * SECOND))

        def revision_in_force() -> str:
            return revision_of(fetcher.found()[where])

        await fetcher.follow(frozenset({where}), PATIENCE)
        assert revision_in_force() == "one"
        await eventually(lambda: len(server.requests) > 2, "asked again")
        assert server.requests[1]["if-none-match"] == '"0"'
        assert ([status.error for status in statuses], len(changes)) == ([None], 1), "304 is no news"

        server.serve(revision("two"))
        await eventually(lambda: revision_in_force() == "two", "another bundle")
        server.serve(b"no bundle")
        await eventually(lambda: statuses[-1].error, "a failure is told")
        assert "not a tar archive" in str(statuses[-1].error)
        assert revision_in_force() == "two", "the last good one stays"
        server.serve(revision("three"))
        await eventually(lambda: revision_in_force() == "three", "asked again after the failure")
        assert [status.revision for status in statuses] == ["one", "two", "two", "three"]

        server.silent = True
        async with BundleFetcher(kept=saved.get) as restarted:
            await restarted.follow(frozenset({where}), PATIENCE)
            assert revision_of(restarted.found()[where]) == "three", "kept through the restart"

        await fetcher.follow(frozenset())
        assert fetcher.found() == {}


async def test_a_bundle_that_is_not_admitted_leaves_the_last_good_one_also_over_a_restart() -> None:
    statuses: list[BundleStatus] = []
    saved: dict[BundleLocation, bytes] = {}

    async def admit(where: BundleLocation, bundle: Bundle) -> None:
        if bundle.revision == "bad":
            raise InvalidConfiguration([Problem("app/rules.rego", 3, "", "http.send is called", "not that")])

    fetcher = BundleFetcher(
        admit=admit, report=statuses.append, save=lambda where, archive: saved.update({where: archive})
    )
    async with BundleServer(revision("good")) as server, fetcher:
        where = location(server.url, delays=(0.01 * SECOND, 0.02 * SECOND))
        await fetcher.follow(frozenset({where}), PATIENCE)
        server.serve(revision("bad"))
        await eventually(lambda: statuses[-1].error, "the bad one is told")
        assert statuses[-1].error == "app/rules.rego:3: http.send is called; not that"
        asked = len(server.requests)
        await eventually(lambda: len(server.requests) > asked + 1, "it is asked for again")
        assert (revision_of(fetcher.found()[where]), saved) == ("good", {where: revision("good")})

        server.silent = True
        async with BundleFetcher(admit=admit, kept=saved.get) as restarted:
            await restarted.follow(frozenset({where}), PATIENCE)
            assert revision_of(restarted.found()[where]) == "good"


async def test_a_bundle_that_was_never_admitted_is_asked_for_anew_with_every_change() -> None:
    refused = True

    async def admit(where: BundleLocation, bundle: Bundle) -> None:
        if refused:
            raise InvalidConfiguration([Problem("a.rego", 1, "", "in conflict", "not that")])

    async with BundleServer(revision("one")) as server, BundleFetcher(admit=admit) as fetcher:
        where = location(server.url, delays=(600 * SECOND, 600 * SECOND))
        await fetcher.follow(frozenset({where}), PATIENCE)
        assert "in conflict" in str(fetcher.found()[where])
        refused = False
        await fetcher.follow(frozenset({where}), PATIENCE)
        assert revision_of(fetcher.found()[where]) == "one"


async def test_a_long_poll_brings_another_bundle_at_once() -> None:
    async with BundleServer(revision("one"), long_polls=True) as server, BundleFetcher() as fetcher:
        where = location(server.url, wait=60, delays=(600 * SECOND, 600 * SECOND))
        await fetcher.follow(frozenset({where}), PATIENCE)
        await eventually(lambda: len(server.requests) == 2, "the long poll")
        assert server.requests[1]["prefer"] == "modes=snapshot;wait=60"
        server.serve(revision("two"))
        await eventually(lambda: revision_of(fetcher.found()[where]) == "two", "another bundle")


async def test_what_was_kept_is_verified_again() -> None:
    key = VerificationKey("k", "HS256", SECRET)
    async with BundleServer() as server:
        server.status = "500 Oh"
        where = location(server.url, verification=Verification((key,)))
        for files, error in ((signed({"a.rego": b"package a"}), None), (FILES, "the server answers 500")):
            async with BundleFetcher(kept=lambda _, files=files: targz(files)) as fetcher:  # type: ignore[misc]
                await fetcher.follow(frozenset({where}), PATIENCE)
                found = fetcher.found()[where]
                assert isinstance(found, Bundle) if error is None else error in str(found)


@pytest.mark.parametrize(
    ("serve", "says"),
    [
        pytest.param({"status": "404 Not Found"}, "answers 404;", id="another status"),
        pytest.param({"status": "302 Found", "extra": "location: http://x/\r\n"}, "302, to http://x/", id="a redirect"),
        pytest.param({"status": "304 Not Modified"}, "answers 304;", id="304 to who has none"),
        pytest.param({"extra": "content-encoding: gzip\r\n"}, "encoding", id="an encoding"),
        pytest.param({"silent": True}, "does not answer within 0.3 s", id="silence"),
        pytest.param({"_content": targz({"../a.rego": b""})}, "leads out of the bundle", id="escape"),
        pytest.param({"_content": targz({**FILES, ".signatures.json": b"{}"})}, "gives no keys", id="signed"),
        pytest.param({"_content": b"x" * 2000}, "more than 1000 bytes", id="too much"),
    ],
)
async def test_what_is_wrong_with_an_answer_is_told(
    monkeypatch: pytest.MonkeyPatch, serve: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(bundle_fetcher, "MAX_BYTES", 1000)
    async with BundleServer(targz(FILES)) as server, BundleFetcher() as fetcher:
        vars(server).update(serve)
        where = location(server.url, timeout=0.3)
        await fetcher.follow(frozenset({where}), PATIENCE)
        assert says in str(fetcher.found()[where])


async def test_a_server_that_is_away_is_told() -> None:
    async with BundleServer() as server:
        where = location(server.url)
    async with BundleFetcher() as fetcher:
        await fetcher.follow(frozenset({where}), PATIENCE)
        assert "connect" in str(fetcher.found()[where])


async def test_waiting_for_the_first_answer_has_an_end() -> None:
    async with BundleServer() as server, BundleFetcher() as fetcher:
        server.silent = True
        await fetcher.follow(frozenset({location(server.url, timeout=60)}), timedelta(seconds=0.1))
        assert fetcher.found() == {}


async def test_a_snapshot_gets_its_bundles_or_is_refused() -> None:
    async with BundleServer(revision("one")) as server:
        head = "apiVersion: peltast.dev/v1\nkind: RegoPolicy\nmetadata: {name: r}\nspec:\n"
        spec = f"  entrypoint: data.app.rules.allow\n  bundle: {{url: '{server.url}'}}\n"
        snapshot = load({"a.yaml": (head + spec).encode()}, "cluster.local", 1)
        bundle = (await fetch_bundles(snapshot)).rego["default/r"].bundle
        assert bundle is not None
        assert bundle.revision == "one"
        server.status = "500 Oh"
        with pytest.raises(InvalidConfiguration, match=r"a\.yaml:6: spec\.bundle\.url: .*the server answers 500"):
            await fetch_bundles(snapshot)
