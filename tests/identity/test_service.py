"""The certificate service over real gRPC and TLS, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from spiffe import SpiffeId, X509Svid

from peltast.identity.acts import Act
from peltast.identity.attest.join_token import TOKEN_LIFETIME, JoinTokens
from peltast.identity.attest.service import JOIN_TOKENS_METHOD, join_token_handler
from peltast.identity.ca.authority import Authority
from peltast.identity.ca.service import CertificateService
from peltast.identity.certificates import pem
from peltast.identity.client import IdentityClient, join, renew
from peltast.identity.protos.ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from peltast.identity.protos.join_pb2 import GenerateRequest, GenerateResponse
from peltast.identity.rpc import channel_credentials, open_channel, server_credentials, server_options
from peltast.identity.svid import Svid, load_svid, new_key_and_csr, save_svid

CATALOG = "spiffe://mesh.example/ns/bookshop/sa/catalog"
STOREFRONT = "spiffe://mesh.example/ns/bookshop/sa/storefront"
CONTROL = "spiffe://mesh.example/peltast/control"

DEADLINE_SECONDS = 20.0

NewSvid = Callable[[str, datetime], Svid]


@dataclass
class Control:
    """A control plane that issues certificates and does nothing else."""

    roots: bytes
    join_address: str
    mtls_address: str
    operator_address: str
    tokens: JoinTokens
    registered: set[str]
    acts: list[Act] = field(default_factory=list)

    def token(self, spiffe_id: str = CATALOG, made: datetime | None = None) -> str:
        return self.tokens.generate(SpiffeId(spiffe_id), made or datetime.now(UTC))

    def client(self, folder: Path) -> IdentityClient:
        return IdentityClient(folder, self.roots, self.join_address, self.mtls_address)


@contextlib.asynccontextmanager
async def serving(
    address: str, handler: grpc.GenericRpcHandler, credentials: grpc.ServerCredentials | None
) -> AsyncIterator[str]:
    server = grpc.aio.server(options=server_options)
    server.add_generic_rpc_handlers((handler,))
    if credentials is None:
        server.add_insecure_port(address)
    else:
        address = f"127.0.0.1:{server.add_secure_port(address, credentials)}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(grace=None)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="/tmp/pi") as folder:
        yield Path(folder)


@pytest.fixture
async def control(authority: Authority, new_svid: NewSvid, now: datetime, sockets: Path) -> AsyncIterator[Control]:
    own, roots = new_svid(CONTROL, now), pem(authority.chain[-1])
    tokens, registered, acts = JoinTokens(), {CATALOG}, list[Act]()
    service = CertificateService(authority, tokens, lambda spiffe_id: str(spiffe_id) in registered, acts.append)
    operators = join_token_handler(tokens, lambda spiffe_id: str(spiffe_id) in registered)

    def credentials(*, require_client: bool) -> grpc.ServerCredentials:
        return server_credentials(lambda: (own.key_pem, own.chain_pem, roots), require_client=require_client)

    anywhere = "127.0.0.1:0"
    async with (
        serving(anywhere, service.for_join_port(), credentials(require_client=False)) as join_address,
        serving(anywhere, service.for_mtls_port(), credentials(require_client=True)) as mtls_address,
        serving(f"unix:{sockets}/o.sock", operators, None) as operator_address,
    ):
        yield Control(roots, join_address, mtls_address, operator_address, tokens, registered, acts)


def issued(svid: Svid) -> Act:
    return Act(str(svid.spiffe_id), "svid.issue", f"{svid.chain[0].serial_number:x}", allowed=True)


async def test_a_node_joins_with_a_token_and_gets_an_svid_that_others_read(control: Control) -> None:
    svid = await join(control.join_address, control.roots, control.token())
    parsed = X509Svid.parse(svid.chain_pem, svid.key_pem)
    assert str(parsed.spiffe_id) == CATALOG
    assert svid.chain[0].public_key() == svid.key.public_key()
    svid.chain[-1].verify_directly_issued_by(x509.load_pem_x509_certificate(control.roots))
    assert len(svid.chain) == 2, "the root is not shown to peers"
    assert control.acts == [issued(svid)]


async def test_a_node_renews_with_the_svid_that_it_has_and_a_new_key(control: Control) -> None:
    first = await join(control.join_address, control.roots, control.token())
    second = await renew(control.mtls_address, control.roots, first)
    assert second.spiffe_id == first.spiffe_id
    assert second.key.public_key() != first.key.public_key()
    assert second.chain[0].serial_number != first.chain[0].serial_number
    assert control.acts == [issued(first), issued(second)]


async def test_a_used_token_is_refused_and_reported(control: Control) -> None:
    token = control.token()
    first = await join(control.join_address, control.roots, token)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(control.join_address, control.roots, token)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert control.acts[0] == issued(first)
    [refusal] = control.acts[1:]
    assert (refusal.action, refusal.allowed, refusal.detail) == ("svid.issue", False, "no such join token")
    assert refusal.actor.startswith("ipv4:127.0.0.1:"), "who it was is not known but by address"
    assert token not in repr(control.acts)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda control: "", id="no token"),
        pytest.param(lambda control: "guessed", id="a guess"),
        pytest.param(lambda control: control.token(made=datetime.now(UTC) - TOKEN_LIFETIME), id="an expired one"),
    ],
)
async def test_without_a_good_token_nobody_joins(control: Control, token: Callable[[Control], str]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(control.join_address, control.roots, token(control))
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [act.allowed for act in control.acts] == [False]


async def test_a_token_is_good_for_its_own_spiffe_id_only(control: Control) -> None:
    control.registered.add(STOREFRONT)
    svid = await join(control.join_address, control.roots, control.token(STOREFRONT))
    assert str(svid.spiffe_id) == STOREFRONT


async def test_a_principal_that_is_not_registered_cannot_join(control: Control) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await join(control.join_address, control.roots, control.token(STOREFRONT))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert control.acts == [Act(STOREFRONT, "svid.issue", "", allowed=False, detail="it is not registered")]


async def test_a_workload_that_was_taken_out_of_the_mesh_cannot_renew(control: Control) -> None:
    svid = await join(control.join_address, control.roots, control.token())
    control.registered.clear()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await renew(control.mtls_address, control.roots, svid)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert control.acts[1:] == [Act(CATALOG, "svid.issue", "", allowed=False, detail="it is not registered")]


async def ask(channel: grpc.aio.Channel, csr: bytes, **metadata: str) -> IstioCertificateResponse:
    call = channel.unary_unary(
        "/istio.v1.auth.IstioCertificateService/CreateCertificate",
        request_serializer=IstioCertificateRequest.SerializeToString,
        response_deserializer=IstioCertificateResponse.FromString,
    )
    request = IstioCertificateRequest(csr=csr.decode())
    return await call(request, metadata=tuple(metadata.items()), timeout=DEADLINE_SECONDS)


async def test_a_bad_signing_request_is_refused_and_reported(control: Control) -> None:
    async with open_channel(control.join_address, channel_credentials(control.roots)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, b"garbage", authorization=f"Bearer {control.token()}")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    [act] = control.acts
    assert (act.actor, act.allowed) == (CATALOG, False)
    assert act.detail.startswith("not a signing request")


async def test_the_chain_that_is_answered_has_the_leaf_first_and_the_root_last(control: Control) -> None:
    async with open_channel(control.join_address, channel_credentials(control.roots)) as channel:
        response = await ask(channel, new_key_and_csr()[1], authorization=f"Bearer {control.token()}")
    assert len(response.cert_chain) == 3
    assert response.cert_chain[-1].encode() == control.roots


async def test_without_an_svid_nobody_reaches_the_mtls_port(control: Control) -> None:
    async with open_channel(control.mtls_address, channel_credentials(control.roots)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, new_key_and_csr()[1], authorization=f"Bearer {control.token()}")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert control.acts == []


async def test_an_expired_svid_does_not_renew(control: Control, new_svid: NewSvid, now: datetime) -> None:
    expired = new_svid(CATALOG, now - timedelta(hours=2))
    credentials = channel_credentials(control.roots, expired.chain_pem, expired.key_pem)
    async with open_channel(control.mtls_address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, new_key_and_csr()[1])
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert control.acts == []


async def test_a_certificate_of_ours_with_two_uri_sans_is_refused_and_reported(
    control: Control, authority: Authority, new_svid: NewSvid, now: datetime
) -> None:
    svid = new_svid(CATALOG, now)
    names = [x509.UniformResourceIdentifier(name) for name in (CATALOG, STOREFRONT)]
    leaf = (
        x509.CertificateBuilder(extensions=[each for each in svid.chain[0].extensions if each.critical is False])
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(svid.key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    credentials = channel_credentials(control.roots, pem(leaf, svid.chain[1]), svid.key_pem)
    async with open_channel(control.mtls_address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, new_key_and_csr()[1])
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert [(act.allowed, act.detail) for act in control.acts] == [(False, "2 URI SANs; exactly one is expected")]


async def test_a_client_does_not_talk_to_a_workload_that_poses_as_the_control_plane(
    control: Control, authority: Authority, new_svid: NewSvid, now: datetime
) -> None:
    """A workload's SVID is of the same root; it has not the DNS name that clients pin."""
    poser = new_svid(STOREFRONT, now)
    heard: list[Act] = []
    service = CertificateService(authority, control.tokens, lambda _: True, heard.append)
    credentials = server_credentials(lambda: (poser.key_pem, poser.chain_pem, control.roots), require_client=False)
    async with (
        serving("127.0.0.1:0", service.for_join_port(), credentials) as address,
        open_channel(address, channel_credentials(control.roots)) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(channel, new_key_and_csr()[1], authorization=f"Bearer {control.token()}")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert heard == []


# The client -----------------------------------------------------------------------------------------------------------


async def test_a_client_keeps_its_svid_and_needs_no_token_after_a_restart(control: Control, tmp_path: Path) -> None:
    first = control.client(tmp_path / "node")
    await first.start(control.token())
    second = control.client(tmp_path / "node")
    await second.start("")
    assert second.svid.chain == first.svid.chain
    assert len(control.acts) == 1


async def test_a_client_renews_when_half_of_the_life_is_over_and_tells(
    control: Control, new_svid: NewSvid, now: datetime, tmp_path: Path
) -> None:
    folder = tmp_path / "node"
    save_svid(folder, new_svid(CATALOG, now - timedelta(minutes=50)))
    client = control.client(folder)
    await client.start("")
    changes = client.changes()
    old = await anext(changes)
    fresh = asyncio.create_task(client.keep_fresh())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            new = await anext(changes)
    finally:
        fresh.cancel()
        await asyncio.gather(fresh, return_exceptions=True)
    assert new.expires > old.expires
    assert client.svid is new
    kept = load_svid(folder, now)
    assert kept is not None
    assert kept.chain == new.chain


async def test_a_client_keeps_the_svid_at_hand_while_the_control_plane_refuses_and_tries_again(
    control: Control, new_svid: NewSvid, now: datetime, tmp_path: Path
) -> None:
    save_svid(tmp_path / "node", new_svid(CATALOG, now - timedelta(minutes=50)))
    client = control.client(tmp_path / "node")
    await client.start("")
    old = client.svid
    control.registered.clear()
    fresh = asyncio.create_task(client.keep_fresh())
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(control.acts) < 2:  # noqa: ASYNC110 - what is waited for is a call
                await asyncio.sleep(0.01)
            assert client.svid is old
            control.registered.add(CATALOG)
            while client.svid is old:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        fresh.cancel()
        await asyncio.gather(fresh, return_exceptions=True)
    assert [act.allowed for act in control.acts][:2] == [False, False]
    assert control.acts[-1].allowed


# Operators ------------------------------------------------------------------------------------------------------------


async def generate(control: Control, spiffe_id: str) -> GenerateResponse:
    async with grpc.aio.insecure_channel(control.operator_address) as channel:
        call = channel.unary_unary(
            JOIN_TOKENS_METHOD,
            request_serializer=GenerateRequest.SerializeToString,
            response_deserializer=GenerateResponse.FromString,
        )
        response: GenerateResponse = await call(GenerateRequest(spiffe_id=spiffe_id), timeout=DEADLINE_SECONDS)
        return response


async def test_an_operators_token_lets_a_workload_join(control: Control) -> None:
    response = await generate(control, CATALOG)
    assert response.expires_in_seconds == 600
    svid = await join(control.join_address, control.roots, response.token)
    assert str(svid.spiffe_id) == CATALOG


@pytest.mark.parametrize(
    ("spiffe_id", "code"),
    [
        pytest.param(STOREFRONT, grpc.StatusCode.NOT_FOUND, id="nobody's"),
        pytest.param("catalog", grpc.StatusCode.INVALID_ARGUMENT, id="no SPIFFE ID"),
        pytest.param("", grpc.StatusCode.INVALID_ARGUMENT, id="nothing"),
    ],
)
async def test_no_token_is_made_for_whom_the_mesh_does_not_know(
    control: Control, spiffe_id: str, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await generate(control, spiffe_id)
    assert refused.value.code() is code
    assert spiffe_id in str(refused.value.details())
