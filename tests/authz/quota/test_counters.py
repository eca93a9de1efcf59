from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis as redis_client
from hypothesis import given, settings
from hypothesis import strategies as st
from support.redis import needs_redis, redis_server

from peltast.authz.quota.counters import Counters, CountersAway, Hit, MemoryCounters, Taken
from peltast.authz.quota.gcra import SECOND, Rate, Unused
from peltast.authz.quota.redis_counters import RedisCounters, redis_key

NOTHING = Unused(0, 0)
HOURLY = Rate(limit=10, period=3_600 * SECOND, burst=10)
DAILY = Rate(limit=15, period=86_400 * SECOND, burst=15)
WIDE = Rate(limit=10**6, period=3_600 * SECOND, burst=2 * 10**6)


@asynccontextmanager
async def counters(kind: str, folder: Path) -> AsyncIterator[Counters]:
    if kind == "memory":
        yield MemoryCounters()
        return
    cluster = kind == "cluster"
    with redis_server(folder, cluster=cluster) as port:
        async with RedisCounters.connect(f"redis://127.0.0.1:{port}", cluster=cluster) as counting:
            yield counting


KINDS = ["memory", pytest.param("redis", marks=needs_redis), pytest.param("cluster", marks=needs_redis)]


@pytest.mark.parametrize("kind", KINDS)
async def test_tokens_are_taken_out_of_every_bucket_or_of_none(kind: str, tmp_path: Path) -> None:
    async with counters(kind, tmp_path) as counting:
        first = await counting.exchange("key {a}", [HOURLY, DAILY], 8, NOTHING)
        second = await counting.exchange("key {a}", [HOURLY, DAILY], 8, NOTHING)
        third = await counting.exchange("key {a}", [HOURLY, DAILY], 8, NOTHING)
        other = await counting.exchange("key {b}", [HOURLY, DAILY], 8, NOTHING)
        daily = await counting.exchange("key {a}", [WIDE, DAILY], 8, NOTHING)
    assert (first.tokens, second.tokens, third.tokens, other.tokens) == (8, 2, 0, 8)
    assert (first.wait, third.wait) == (0, pytest.approx(HOURLY.interval, rel=0.2))
    assert daily.tokens == 5, "the hour's bucket had no more, and so none was taken out of the day's"


@pytest.mark.parametrize("kind", KINDS)
async def test_what_comes_back_is_there_again(kind: str, tmp_path: Path) -> None:
    async with counters(kind, tmp_path) as counting:
        taken = await counting.exchange("key", [HOURLY], 10, NOTHING)
        await counting.exchange("key", [HOURLY], 0, Unused(10, taken.at))
        again = await counting.exchange("key", [HOURLY], 20, NOTHING)
    assert again.tokens in (9, 10), "one interval less than a whole one has gone by"


@pytest.mark.parametrize("kind", KINDS)
async def test_hits_are_counted_in_order(kind: str, tmp_path: Path) -> None:
    async with counters(kind, tmp_path) as counting:
        assert await counting.count([]) == []
        assert await counting.count([Hit("a", 2, 60), Hit("b", 1, 60), Hit("a", 3, 60), Hit("a", 0, 60)]) == [
            2,
            1,
            5,
            5,
        ]
        assert await counting.count([Hit("b", 1, 60), Hit("a", 2**32 - 1, 60)]) == [2, 5 + 2**32 - 1]


@pytest.mark.parametrize("kind", KINDS)
async def test_many_at_once_get_no_more_than_there_is(kind: str, tmp_path: Path) -> None:
    async with counters(kind, tmp_path) as counting:
        taken = await asyncio.gather(*(counting.exchange("key", [HOURLY], 1, NOTHING) for _ in range(40)))
    assert sum(each.tokens for each in taken) == 10


@needs_redis
async def test_redis_counts_as_the_pure_functions_do(tmp_path: Path) -> None:
    """Every answer of the script, replayed by the clock that it told."""
    with redis_server(tmp_path) as port:
        url = f"redis://127.0.0.1:{port}"
        number = 0
        rate = st.builds(Rate, st.integers(1, 10**6), st.sampled_from([SECOND, 86_400 * SECOND]), st.integers(1, 300))
        asked = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=12)

        @settings(max_examples=60)
        @given(st.lists(rate, min_size=1, max_size=3), asked)
        def agrees(rates: list[Rate], asked: list[tuple[int, int]]) -> None:
            nonlocal number
            number += 1
            asyncio.run(replayed(url, f"key {number}", rates, asked))

        await asyncio.to_thread(agrees)
    assert number >= 60


async def replayed(url: str, key: str, rates: list[Rate], asked: list[tuple[int, int]]) -> None:
    clock = 0
    model = MemoryCounters(lambda: clock)
    last = Taken(0, 0, 0)
    async with RedisCounters.connect(url, cluster=False) as counting:
        for wanted, back in asked:
            unused = Unused(min(back, last.tokens), last.at)
            last = await counting.exchange(key, rates, wanted, unused)
            clock = last.at
            assert last == await model.exchange(key, rates, wanted, unused)


@needs_redis
async def test_keys_of_one_name_are_in_one_slot_and_end(tmp_path: Path) -> None:
    with redis_server(tmp_path) as port, redis_client.Redis(port=port) as client:
        async with RedisCounters.connect(f"redis://127.0.0.1:{port}", cluster=False) as counting:
            await counting.exchange("secret} {x", [HOURLY, DAILY], 3, NOTHING)
            await counting.count([Hit("window", 1, 60)])
        keys = sorted(client.keys())
        assert keys == sorted(
            [f"{redis_key('secret} {x')}:{index}".encode() for index in (0, 1)] + [redis_key("window").encode()]
        )
        assert not any(b"secret" in key for key in keys)
        lives = sorted(client.pttl(key) / 1000 for key in keys)
        assert lives == pytest.approx([60, 3 * 360, 3 * 5_760], rel=0.05)


@needs_redis
async def test_a_redis_that_goes_away_is_told_and_one_that_comes_back_counts(tmp_path: Path) -> None:
    with redis_server(tmp_path) as port:
        pass
    async with RedisCounters.connect(f"redis://127.0.0.1:{port}", cluster=False) as counting:
        with pytest.raises(CountersAway, match="Redis"):
            await counting.exchange("key", [HOURLY], 1, NOTHING)
        with pytest.raises(CountersAway, match="Redis"):
            await counting.count([Hit("key", 1, 60)])
        with redis_server(tmp_path, port=port):
            assert (await counting.exchange("key", [HOURLY], 1, NOTHING)).tokens == 1
            assert await counting.count([Hit("key", 1, 60)]) == [1]


async def test_memory_forgets_what_has_ended_and_refuses_what_has_no_room() -> None:
    clock = 0
    counting = MemoryCounters(lambda: clock, max_keys=2)
    assert await counting.count([Hit("a", 1, 60)]) == [1]
    assert (await counting.exchange("b", [HOURLY], 10, NOTHING)).tokens == 10
    with pytest.raises(CountersAway, match="2 counters"):
        await counting.count([Hit("c", 1, 60)])
    clock = 60 * SECOND
    assert await counting.count([Hit("c", 1, 60)]) == [1], "a has ended"
    assert (await counting.exchange("b", [HOURLY], 10, NOTHING)).tokens == 0
    clock = HOURLY.full
    assert (await counting.exchange("d", [HOURLY], 1, NOTHING)).tokens == 1, "b is full again, and so forgotten"
