"""Fetched key sets: what is read, which keys hold, when they are asked for; then the same over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.running import eventually
from support.tokens import ISSUER, bearer, claims, jwk, key_set, rsa_key

from peltast.authz._engine import KeySets
from peltast.authz.compile import KeySource
from peltast.authz.jwks import MAX_AGE, Answer, FetchedKeys, dump, read_key_set, restore
from peltast.authz.key_fetcher import MAX_BYTES, KeyFetcher, KeyStatus

NOW = datetime(2026, 11, 21, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
JWKS = key_set(jwk(rsa_key("r"), "r")).encode()
KEYS = read_key_set(JWKS)

spreads = st.floats(0, 1)


# Time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_control", "lifetime"),
    [
        ("", 20 * MINUTE),
        ("public, max-age=600", 10 * MINUTE),
        ("MAX-AGE = 600", 10 * MINUTE),
        ('max-age="600"', 10 * MINUTE),
        ("max-age=0", MINUTE),
        ("max-age=999999999", 60 * MINUTE),
        ("max-age=99999999999999999999", 60 * MINUTE),
        ("s-maxage=600", 20 * MINUTE),
        ("max-age=-1, no-store", 20 * MINUTE),
    ],
)
def test_keys_are_good_for_as_long_as_the_server_says_within_bounds(cache_control: str, lifetime: timedelta) -> None:
    assert Answer(b"", cache_control).lifetime == lifetime


@given(st.timedeltas(MINUTE, 60 * MINUTE), spreads)
def test_keys_are_asked_for_ahead_of_their_end(lifetime: timedelta, spread: float) -> None:
    state = FetchedKeys(NOW).succeeded(KEYS, lifetime, NOW, spread)
    assert NOW + lifetime * 0.66 < state.next_fetch < NOW + lifetime * 0.84


@given(st.lists(spreads, min_size=1, max_size=20))
def test_failures_are_spaced_out_and_bounded(failures: list[float]) -> None:
    state = FetchedKeys(NOW)
    for number, spread in enumerate(failures):
        state = state.failed("x", NOW, spread)
        delay = (state.next_fetch - NOW).total_seconds()
        assert min(2**number, 300) * 0.79 < delay <= min(2**number, 300)


@given(st.lists(st.tuples(st.booleans(), st.timedeltas(timedelta(), 8 * 60 * MINUTE), spreads), max_size=12))
def test_the_last_good_keys_hold_for_a_day_and_no_longer(attempts: list[tuple[bool, timedelta, float]]) -> None:
    state, now, last_good = FetchedKeys(NOW), NOW, None
    for succeeds, passed, spread in attempts:
        now += passed
        if succeeds:
            state, last_good = state.succeeded(KEYS, 20 * MINUTE, now, spread), now
        else:
            state = state.failed("x", now, spread)
        for later in (timedelta(), 23 * 60 * MINUTE, MAX_AGE, 2 * MAX_AGE):
            holds = last_good is not None and now + later < last_good + MAX_AGE
            assert (state.in_force(now + later) is not None) == holds
        if state.in_force(now) is not None:
            assert last_good is not None
            assert state.wake(now) <= last_good + MAX_AGE, "somebody is there to drop them"


def test_keys_are_kept_through_a_restart_with_their_age() -> None:
    source = KeySource(ISSUER, "https://issuer.test/keys", timedelta(seconds=5))
    states = {source: FetchedKeys(NOW).succeeded(KEYS, MINUTE, NOW, 0), KeySource("i", "u", MINUTE): FetchedKeys(NOW)}
    restored = restore(dump(states), NOW + timedelta(hours=1))
    state = restored.pop((ISSUER, source.uri))
    assert not restored
    assert (state.keys, state.fetched, state.next_fetch) == (KEYS, NOW, NOW + timedelta(hours=1))


@pytest.mark.parametrize("dumped", [b"", b"{", b"[1]", b"{}1", b'[{"uri":"u"}]', b'[{"issuer":1,"uri":"u","keys":{}}]'])
def test_what_was_not_kept_is_not_restored(dumped: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        restore(dumped, NOW)


# Answers --------------------------------------------------------------------------------------------------------------


def test_of_a_key_set_only_what_verifies_is_read() -> None:
    key = jwk(rsa_key("r"), "r", x5c=["MIIB"], colour="red")
    assert read_key_set(json.dumps({"keys": [key], "more": 1}).encode()) == KEYS


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "Expecting value"),
        (b"\xff", "utf-8"),
        (b"<html>", "Expecting value"),
        (b"[]", "a JWK Set"),
        (b"{}", "a JWK Set"),
        (b'{"keys":{}}', "a JWK Set"),
        (b'{"keys":[]}', "no RSA"),
        (b'{"keys":[1,null]}', "no RSA"),
        (b'{"keys":[],"keys":[]}', "given twice"),
        (JWKS.replace(b'"kty"', b'"kid":"other","kty"'), "given twice"),
        (key_set(jwk(rsa_key("small", 1024), "s")).encode(), "2048 bits"),
        (key_set(jwk(rsa_key("r"), "r"), jwk(rsa_key("o"), "r")).encode(), "two keys"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_other_answers_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_key_set(body)


@given(st.binary(max_size=200))
def test_any_answer_is_read_or_refused(body: bytes) -> None:
    with suppress(ValueError):
        read_key_set(body)


# Over HTTP ------------------------------------------------------------------------------------------------------------


class Server:
    """An HTTP server whose every answer is `answer`, to the byte."""

    def __init__(self) -> None:
        self.answer = b""
        self.requests: list[bytes] = []

    async def __aenter__(self) -> Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        if self.answer:
            writer.close()
        else:
            await reader.read()  # says nothing until the client goes
            writer.close()

    def source(self, **more: Any) -> KeySource:
        return KeySource(ISSUER, f"http://127.0.0.1:{self.port}/keys", more.get("timeout", timedelta(seconds=5)))


def http(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_keys_are_fetched_and_failures_leave_the_last_good_ones() -> None:
    statuses: list[KeyStatus] = []
    saved: list[bytes] = []
    changes: list[int] = []
    fetcher = KeyFetcher(changed=lambda: changes.append(1), report=statuses.append, save=saved.append)
    async with Server() as server, fetcher:
        server.answer = http(JWKS)
        one = server.source()
        await fetcher.follow(frozenset({one}))
        assert fetcher.in_force() == {one: KEYS}
        assert (statuses, len(changes)) == ([KeyStatus(one, None)], 1)
        assert list(restore(saved[0], NOW)) == [(ISSUER, one.uri)]

        server.answer = http(b"", "500 Oh")
        restarted = KeyFetcher(kept=saved[0], report=statuses.append)
        async with restarted:
            await restarted.follow(frozenset({one}))
            assert restarted.in_force() == {one: KEYS}, "kept through the restart"
            assert "the server answers 500" in str(statuses[-1].error)
            server.answer = http(JWKS)
            await eventually(lambda: statuses[-1].error is None, "asked again, and answered")

        server.answer = http(b"", "500 Oh")
        patient = server.source(timeout=timedelta(seconds=6))
        await fetcher.follow(frozenset({patient}))
        assert fetcher.in_force() == {patient: KEYS}, "another timeout is no other key set"

        await fetcher.follow(frozenset())
        assert fetcher.in_force() == {}


async def test_the_last_good_keys_are_dropped_when_their_day_is_over() -> None:
    statuses: list[KeyStatus] = []
    async with Server() as server:
        server.answer = http(b"", "500 Oh")
        source = server.source()
        fetched = datetime.now(UTC) - MAX_AGE + timedelta(seconds=0.5)
        kept = dump({source: FetchedKeys(NOW, KEYS, fetched)})
        changes: list[int] = []
        async with KeyFetcher(kept=kept, changed=lambda: changes.append(1), report=statuses.append) as fetcher:
            await fetcher.follow(frozenset({source}))
            assert (fetcher.in_force(), changes) == ({source: KEYS}, [])
            await eventually(lambda: changes, "their day is over")
            assert fetcher.in_force() == {}
            assert "24 h old, and are dropped; the server answers 500" in str(statuses[-1].error)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(http(JWKS, "404 Not Found"), "answers 404;", id="another status"),
        pytest.param(http(b"", "302 Found", location="http://127.0.0.1:1/"), "302, to http://127", id="a redirect"),
        pytest.param(http(JWKS, content_encoding="gzip"), "encoding", id="an encoding"),
        pytest.param(http(JWKS + b" " * MAX_BYTES), f"more than {MAX_BYTES} bytes", id="too much"),
        pytest.param(http(JWKS)[:-1], "", id="cut short"),
        pytest.param(b"SSH-2.0\r\n\r\n", "", id="another protocol"),
        pytest.param(http(b"{}"), "a JWK Set", id="no key set"),
        pytest.param(b"", "does not answer within 0.3 s", id="silence"),
    ],
)
async def test_what_is_wrong_with_an_answer_is_told(answer: bytes, says: str) -> None:
    statuses: list[KeyStatus] = []
    async with Server() as server, KeyFetcher(report=statuses.append) as fetcher:
        server.answer = answer
        await fetcher.follow(frozenset({server.source(timeout=timedelta(seconds=0.3))}))
        assert fetcher.in_force() == {}
        assert statuses[0].error
        assert says in statuses[0].error
        if b"location" in answer:
            assert len(server.requests) == 1


async def test_a_server_that_is_away_is_told() -> None:
    statuses: list[KeyStatus] = []
    async with Server() as server:
        source = server.source()
    async with KeyFetcher(report=statuses.append) as fetcher:
        await fetcher.follow(frozenset({source}))
        assert fetcher.in_force() == {}
        assert "connect" in str(statuses[0].error)


async def test_waiting_for_the_first_answer_has_an_end() -> None:
    async with Server() as server, KeyFetcher() as fetcher:
        source = server.source(timeout=timedelta(seconds=60))
        await fetcher.follow(frozenset({source}), timedelta(seconds=0.1))
        assert fetcher.in_force() == {}


# Programs and keys ----------------------------------------------------------------------------------------------------


def test_keys_that_are_fetched_come_to_the_engine_without_a_new_program(
    mesh: Callable[..., Any], policy: Callable[..., str], now: int
) -> None:
    rule = {"issuer": ISSUER, "jwksUri": "https://issuer.test/keys"}
    made = mesh(policy({"jwtRules": [rule]}, kind="RequestAuthentication"))
    token = bearer(jwt.encode(claims(now), rsa_key("r"), "RS256", headers={"kid": "r"}))
    (source,) = made.revision.key_sources
    assert source == KeySource(ISSUER, "https://issuer.test/keys", timedelta(seconds=5))
    refused = made.decide(**token)
    assert (refused.status, refused.reason) == (401, "token_keys_unavailable")
    assert made.decide().allowed

    fetched = made.revision.with_keys({source: KEYS})
    assert fetched.programs == made.revision.programs
    made.keys = KeySets.load(fetched.keys["shop/catalog"])
    allowed = made.decide(**token)
    assert (allowed.allowed, allowed.token_principal, allowed.decided_by) == (True, f"{ISSUER}/ada", "cache")
