"""`peltast quota serve`: who gets in, what is answered, and what follows."""

from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from google.protobuf.json_format import ParseDict
from spiffe import SpiffeId, TrustDomain
from support.acts import Record
from support.quota import served
from support.receivers import free_port
from support.redis import needs_redis, redis_server
from support.running import PELTAST, eventually
from typer.testing import CliRunner

from peltast.authz.protos.quota_pb2 import BorrowRequest, BorrowResponse, Entry, Returned
from peltast.authz.quota.grpc import LEASES, RATE_LIMITS
from peltast.cli.main import app
from peltast.identity.ca.authority import Authority, issue, make_root
from peltast.identity.certificates import pem
from peltast.identity.rpc import channel_credentials, open_channel
from peltast.identity.svid import Svid, new_key_and_csr

MESH = TrustDomain("mesh.example")
LIMITS = """\
domain: shop
descriptors:
  - key: user
    rate_limit: {unit: year, requests_per_unit: 2}
  - key: lent
    rate_limit: {unit: hour, requests_per_unit: 40}
"""


@pytest.fixture
def limits(tmp_path: Path) -> Path:
    folder = tmp_path / "limits"
    folder.mkdir()
    (folder / "shop.yaml").write_text(LIMITS)
    return folder


async def limited(channel: grpc.aio.Channel, hits: int = 1, value: str = "jo") -> str:
    """The overall code, or the status of the call where it failed."""
    call = channel.unary_unary(
        f"/{RATE_LIMITS}/ShouldRateLimit",
        request_serializer=RateLimitRequest.SerializeToString,
        response_deserializer=RateLimitResponse.FromString,
    )
    entries = [{"key": "user", "value": value}]
    request = ParseDict(
        {"domain": "shop", "descriptors": [{"entries": entries}], "hitsAddend": hits}, RateLimitRequest()
    )
    try:
        return RateLimitResponse.Code.Name((await call(request, timeout=10)).overall_code)
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def borrow(
    channel: grpc.aio.Channel, key: str = "lent", returned: list[Returned] | None = None
) -> BorrowResponse:
    call: Any = channel.unary_unary(
        f"/{LEASES}/Borrow",
        request_serializer=BorrowRequest.SerializeToString,
        response_deserializer=BorrowResponse.FromString,
    )
    request = BorrowRequest(domain="shop", entries=[Entry(key=key, value="jo")], tokens=99, returned=returned)
    answer: BorrowResponse = await call(request, timeout=10)
    return answer


async def test_by_default_only_the_user_is_served_and_changes_are_followed(state: Path, limits: Path) -> None:
    path = state / "run" / "quota.sock"
    async with served(limits, "--state", state) as said, grpc.aio.insecure_channel(f"unix:{path}") as channel:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [await limited(channel) for _ in range(3)] == ["OK", "OK", "OVER_LIMIT"]
        (limits / "shop.yaml").write_text(LIMITS.replace("requests_per_unit: 2}", "requests_per_unit: -2}"))
        await eventually(lambda: any("descriptors refused" in line for line in said), "it is refused")
        assert any("shop.yaml:4: descriptors[0].rate_limit.requests_per_unit: -2 is given" in line for line in said)
        assert await limited(channel) == "OVER_LIMIT", "the last good ones stay"
        (limits / "shop.yaml").write_text(LIMITS.replace("requests_per_unit: 2}", "requests_per_unit: 9}"))
        await eventually(lambda: any("descriptors taken" in line for line in said), "it is taken")
        assert await limited(channel) == "OK"
        assert await limited(channel, value="x" * 70_000) == "RESOURCE_EXHAUSTED"
        lent = [await borrow(channel) for _ in range(11)]
        assert [each.tokens for each in lent] == [4] * 10 + [0]
        assert 0 < lent[-1].retry_after_milliseconds <= 90_000
        again = await borrow(channel, returned=[Returned(lease=lent[0].lease, unused=3)])
        assert again.tokens in (2, 3), "less what has come back by itself"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await borrow(channel, key="stranger")
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@needs_redis
async def test_two_count_as_one_in_redis_and_say_when_it_is_away(tmp_path: Path, state: Path, limits: Path) -> None:
    other = state / "other"
    with redis_server(tmp_path) as port:
        url = f"redis://127.0.0.1:{port}"
        async with (
            served(limits, "--state", state, "--redis", url),
            served(limits, "--state", other, PELTAST_REDIS=url),
            grpc.aio.insecure_channel(f"unix:{state}/run/quota.sock") as one,
            grpc.aio.insecure_channel(f"unix:{other}/run/quota.sock") as two,
        ):
            assert [await limited(each) for each in (one, two, one)] == ["OK", "OK", "OVER_LIMIT"]
            assert sum([(await borrow(each)).tokens for each in [one, two] * 6]) == 40
    async with (
        served(limits, "--state", state, "--redis", url),
        grpc.aio.insecure_channel(f"unix:{state}/run/quota.sock") as one,
    ):
        assert await limited(one) == "UNAVAILABLE"


def new_svid(authority: Authority, name: str) -> Svid:
    key, csr = new_key_and_csr()
    return Svid(key, issue(authority, csr, SpiffeId(f"spiffe://mesh.example/{name}"), datetime.now(UTC))[:-1])


def rooted(now: datetime) -> tuple[Authority, bytes]:
    root = make_root(MESH, now)
    return root, pem(*root.chain)


async def test_over_tcp_callers_show_svids_and_leases_are_theirs(tmp_path: Path, limits: Path) -> None:
    root, roots = rooted(datetime.now(UTC))
    stranger, _ = rooted(datetime.now(UTC))
    server = new_svid(root, "peltast/control")
    (tmp_path / "chain.pem").write_bytes(server.chain_pem)
    (tmp_path / "key.pem").write_bytes(server.key_pem)
    (tmp_path / "roots.pem").write_bytes(roots)
    address = f"127.0.0.1:{free_port()}"
    files = (
        "--certificate",
        tmp_path / "chain.pem",
        "--key",
        tmp_path / "key.pem",
        "--client-ca",
        tmp_path / "roots.pem",
    )
    web, thief, outsider = (
        new_svid(root, "ns/a/sa/web"),
        new_svid(root, "ns/a/sa/thief"),
        new_svid(stranger, "ns/a/sa/web"),
    )

    def channel(svid: Svid | None) -> grpc.aio.Channel:
        shown = (svid.chain_pem, svid.key_pem) if svid else ()
        return open_channel(address, channel_credentials(roots, *shown))

    async with (
        served(limits, "--listen", address, *files),
        channel(web) as webs,
        channel(thief) as thiefs,
        channel(outsider) as outsiders,
        channel(None) as nobodys,
    ):
        assert await limited(webs) == "OK"
        assert await limited(outsiders) == "UNAVAILABLE"
        assert await limited(nobodys) == "UNAVAILABLE"
        lent = [await borrow(webs) for _ in range(10)]
        stolen = await borrow(thiefs, returned=[Returned(lease=lent[0].lease, unused=4)])
        assert stolen.tokens == 0
        assert (await borrow(webs, returned=[Returned(lease=lent[0].lease, unused=4)])).tokens >= 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--listen", "127.0.0.1:1"], 1, "it needs --certificate, --key and --client-ca"),
        (["--listen", "here"], 1, "allowed: HOST:PORT"),
        (["--key", "k"], 1, "are for --listen"),
        (["--redis-cluster"], 1, "--redis-cluster is for --redis"),
        (["--redis", "http://redis"], 2, "redis://, rediss:// or unix:// is expected"),
        (["--redis", "redis://:port"], 1, "Port could not be cast to integer"),
    ],
)
def test_options_that_make_no_safe_service_are_refused(
    limits: Path, arguments: list[str], code: int, says: str
) -> None:
    ended = CliRunner().invoke(app, ["quota", "serve", str(limits), *arguments])
    assert (ended.exit_code, says in ended.stderr) == (code, True), ended.output


def test_problems_of_descriptors_are_told_before_it_starts(limits: Path) -> None:
    (limits / "more.yaml").write_text(LIMITS)
    ended = CliRunner().invoke(app, ["quota", "serve", str(limits)])
    assert ended.exit_code == 1
    assert "shop.yaml:1: domain: 'shop' is given; a domain is written in one file, and more.yaml has it" in ended.stderr


async def test_where_a_mesh_runs_what_is_taken_and_refused_is_on_record(
    limits: Path, state: Path, record: Record
) -> None:
    async with served(limits, "--state", state):
        (limits / "shop.yaml").write_text(LIMITS.replace("requests_per_unit: 2", "requests_per_unit: -2"))
        await eventually(lambda: len(record) == 2, "the refusal is on record")
        (limits / "shop.yaml").write_text(LIMITS.replace("requests_per_unit: 2", "requests_per_unit: 3"))
        await eventually(lambda: len(record) == 3, "the next is on record")
    assert [(act.action, act.allowed, act.object) for act in record] == [
        ("limits.take", True, str(limits)),
        ("limits.refuse", False, str(limits)),
        ("limits.take", True, str(limits)),
    ]
    assert record[0].detail == "domains: shop"
    assert "shop.yaml:4" in record[1].detail
    assert "-2" in record[1].detail


async def test_a_folder_that_is_refused_at_the_start_is_on_record(limits: Path, state: Path, record: Record) -> None:
    (limits / "more.yaml").write_text(LIMITS)
    process = await asyncio.create_subprocess_exec(*PELTAST, "quota", "serve", str(limits), "--state", str(state))
    assert await process.wait() == 1
    assert [(act.action, act.allowed) for act in record] == [("limits.refuse", False)]
    assert "more.yaml has it" in record[0].detail
