"""The control plane in one process: configuration, certificate authority, discovery, check service."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
import typer
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse
from prometheus_client import CollectorRegistry, start_http_server
from spiffe import SpiffeId, TrustDomain

from peltast.audit.collector.keys import load_or_create_keys
from peltast.audit.shipper import Shipper
from peltast.authz.admission import RegoAdmission
from peltast.authz.bundle_fetcher import BundleFetcher, BundleStatus
from peltast.authz.key_fetcher import KeyFetcher, KeyStatus
from peltast.authz.quota.counters import Counters
from peltast.authz.quota.grpc import LEASES, policy_lease_methods
from peltast.authz.quota.policy_leases import PolicyLeases
from peltast.authz.revision import Revision, compile_revision
from peltast.authz.revocation_service import NAME as REVOCATIONS
from peltast.authz.revocation_service import revocation_methods
from peltast.authz.revocations import NO_REVOCATIONS, Revocation, RevocationList
from peltast.cli.acts import SPOOL_BYTES, ActLog
from peltast.cli.changes import ChangeLog
from peltast.cli.check_workers import CheckWorkers
from peltast.cli.console import run_until_stopped
from peltast.cli.counting import counters_at
from peltast.cli.kept_bundles import KeptBundles
from peltast.cli.logs import log_to_stderr
from peltast.cli.operator_acts import operator_acts_handler
from peltast.cli.options import BasePort, RedisUrl, State, TrustDomainOption
from peltast.cli.settings import (
    DEFAULT_BASE_PORT,
    DEFAULT_CHECK_WORKERS,
    DEFAULT_TRUST_DOMAIN,
    LOOPBACK,
    ControlSettings,
)
from peltast.cli.starts import Starter
from peltast.identity.acts import Act
from peltast.identity.attest.join_token import JoinTokens
from peltast.identity.attest.service import join_token_handler
from peltast.identity.ca.authority import issue
from peltast.identity.ca.service import CertificateService
from peltast.identity.ca.store import load_or_create
from peltast.identity.certificates import pem
from peltast.identity.files import make_private_folder, write_private
from peltast.identity.rpc import (
    caller,
    channel_credentials,
    generic_handler,
    open_channel,
    server_credentials,
    server_options,
)
from peltast.identity.svid import Svid, new_key_and_csr, rotation_time, save_svid
from peltast.policies.problems import InvalidConfiguration
from peltast.policies.rego_sources import BundleLocation, RegoSource
from peltast.policies.snapshot import load
from peltast.policies.sources.bundle import Bundle
from peltast.policies.sources.folder import Files, watch_folder
from peltast.proxy.xds.compile import Surroundings
from peltast.proxy.xds.discovery import DiscoveryService, ProxyStatus
from peltast.proxy.xds.serve import AGGREGATED_DISCOVERY

__all__ = ["app"]

log = structlog.get_logger()

app = typer.Typer(add_completion=False)


@app.command()
def control_plane(
    state: State,
    config: Annotated[Path, typer.Option(help="Folder of YAML and Rego.", exists=True, file_okay=False)],
    trust_domain: TrustDomainOption = DEFAULT_TRUST_DOMAIN,
    base_port: BasePort = DEFAULT_BASE_PORT,
    check_workers: Annotated[int, typer.Option(help="Processes of the check service.", min=1, max=64)] = (
        DEFAULT_CHECK_WORKERS
    ),
    redis: RedisUrl = None,
) -> None:
    """Configuration, certificate authority, discovery (ADS), check service, and quotas for many sidecars."""
    log_to_stderr()
    settings = ControlSettings(state, trust_domain, base_port)

    async def run() -> None:
        async with counters_at(redis) as counters:
            await ControlPlane(settings, config, check_workers, counters).run()

    run_until_stopped(run())


class ControlPlane:
    """Wires the planes into one process."""

    def __init__(self, settings: ControlSettings, configuration: Path, check_workers: int, counters: Counters) -> None:
        self._settings = settings
        self._configuration = configuration
        now = datetime.now(UTC)
        self._authority = load_or_create(settings.authority, TrustDomain(settings.trust_domain), now)
        self._roots = pem(self._authority.chain[-1])
        self._principal = SpiffeId(settings.control_principal("control"))
        self._svid = self._own_svid(now)
        spool = settings.state / "control" / "spool"
        self._shipper = Shipper(spool, SPOOL_BYTES, self._collector_channel)
        starter = Starter(spool, settings.state / "control" / "audit-start.sha256", lambda: self._svid)
        # The collector cannot be asked: its SVID is issued here, and not before that is on record.
        audit_keys = load_or_create_keys(make_private_folder(settings.audit_keys)).public
        self._acts = ActLog(spool, str(self._principal), lambda: starter.start(audit_keys))
        self._changes = ChangeLog(configuration, settings.state / "control" / "configuration.json", self._acts.report)
        self._tokens = JoinTokens()
        self._revision: Revision | None = None
        self._read: Mapping[str, RegoSource] = {}
        self._bundles_changed = asyncio.Event()
        self._kept_bundles = KeptBundles(settings.state / "control" / "bundles")
        self._revoked = NO_REVOCATIONS
        self._revocations = self._load_revocations()
        self._check = CheckWorkers(settings, check_workers, self._note)
        self._leases = PolicyLeases(counters)
        self._discovery = DiscoveryService(self._surroundings, self._report_status, self._report_live)
        self._certificates = CertificateService(self._authority, self._tokens, self._is_registered, self._acts.report)

    async def run(self) -> None:
        """Runs for ever."""
        servers = [await self._serve_join(), await self._serve_mtls(), await self._serve_operators()]
        metrics = self._serve_metrics()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_configuration())
                group.create_task(self._shipper.run())
                group.create_task(self._acts.beat())
                group.create_task(self._rotate())
        finally:
            metrics.shutdown()
            await self._check.stop()
            for server in servers:
                await server.stop(grace=None)
            self._acts.close()

    # Configuration --------------------------------------------------------------------------------------------------

    async def _follow_configuration(self) -> None:
        number = 0
        async with (
            RegoAdmission() as admission,
            RegoAdmission() as of_bundles,  # another, so that nobody waits for a hostile bundle
            self._bundle_fetcher(of_bundles) as bundles,
            self._key_fetcher() as keys,
        ):
            async for files in self._configurations():
                number += 1
                try:
                    await self._take(files, number, admission, bundles, keys)
                except InvalidConfiguration as invalid:
                    self._note(Act("", "configuration.refuse", str(number), allowed=False, detail=str(invalid)))

    async def _configurations(self) -> AsyncIterator[Files | InvalidConfiguration]:
        """The folder's files: now, after every change of them, and when a bundle that was fetched is another."""
        watched = watch_folder(self._configuration)
        files = await anext(watched)
        while True:
            yield files
            change = asyncio.ensure_future(anext(watched))
            try:
                while await self._bundle_changes_before(change):
                    yield files
                files = await change
            finally:
                change.cancel()

    async def _bundle_changes_before(self, change: asyncio.Future[Any]) -> bool:
        """Waits for either; tells whether it was a bundle."""
        bundle = asyncio.ensure_future(self._bundles_changed.wait())
        await asyncio.wait((change, bundle), return_when=asyncio.FIRST_COMPLETED)
        bundle.cancel()
        self._bundles_changed.clear()
        return not change.done()

    async def _take(
        self,
        files: Files | InvalidConfiguration,
        number: int,
        admission: RegoAdmission,
        bundles: BundleFetcher,
        keys: KeyFetcher,
    ) -> None:
        """Puts a configuration in force, if all of it is sound; else the last good one stays."""
        if isinstance(files, InvalidConfiguration):
            raise files
        # Reading bundles takes seconds where they are large, and others wait for this thread.
        snapshot = await asyncio.to_thread(load, files, self._settings.trust_domain, number)
        self._read = snapshot.rego
        await bundles.follow(snapshot.bundle_locations)
        self._bundles_changed.clear()
        snapshot = snapshot.with_bundles(bundles.found())
        version = await asyncio.to_thread(lambda: snapshot.version)
        if self._revision is not None and version == self._revision.snapshot.version:
            return
        revision = await asyncio.to_thread(compile_revision, await admission.check(snapshot))
        await keys.follow(revision.key_sources)
        self._changes.take(snapshot)
        self._revision = replace(revision.with_keys(keys.in_force()), revocations=self._revoked)
        self._check.take(self._revision)
        await self._check.ready()  # sidecars will ask by the programs that they are sent
        self._leases.take(snapshot)
        self._discovery.take(self._revision)
        self._kept_bundles.drop_others(snapshot.bundle_locations)
        self._note(Act("", "configuration.take", snapshot.version, allowed=True, detail=f"number {number}"))

    def _put_in_force(self, revision: Revision) -> None:
        self._revision = replace(revision, revocations=self._revoked)
        self._check.take(self._revision)
        self._discovery.take(self._revision)

    def _load_revocations(self) -> RevocationList:
        """Those of earlier runs. A file that cannot be read ends the start: a revoked token must not come back."""
        revocations = RevocationList(self._keep_revocation, self._take_revocations)
        if self._revocations_file.exists():
            self._revoked = self._revocations_file.read_bytes()
            revocations.load(self._revoked)
        return revocations

    @property
    def _revocations_file(self) -> Path:
        return self._settings.state / "control" / "revocations.json"

    def _keep_revocation(self, revocation: Revocation, document: bytes) -> None:
        self._acts.report(Act("", "token.revoke", str(revocation), allowed=True))
        try:
            write_private(self._revocations_file, document)
        except OSError as error:
            self._note(Act("", "token.revoke", str(revocation), allowed=False, detail=str(error)))
            raise

    def _take_revocations(self, document: bytes) -> None:
        self._revoked = document
        if self._revision is not None:
            self._put_in_force(self._revision)

    def _key_fetcher(self) -> KeyFetcher:
        file = self._settings.state / "control" / "jwks.json"

        def changed() -> None:
            if self._revision is not None:
                self._put_in_force(self._revision.with_keys(fetcher.in_force()))

        fetcher = KeyFetcher(
            kept=file.read_bytes() if file.exists() else b"[]",
            changed=changed,
            report=self._report_keys,
            save=lambda dumped: self._keep_keys(file, dumped),
        )
        return fetcher

    def _keep_keys(self, file: Path, dumped: bytes) -> None:
        try:
            write_private(file, dumped)
        except OSError as error:
            log.exception("fetched keys not kept", error=str(error))

    def _report_keys(self, status: KeyStatus) -> None:
        source, error = status.source, status.error
        log.info("keys fetched" if error is None else "keys refused", issuer=source.issuer, uri=source.uri, error=error)
        action = "keys.take" if error is None else "keys.refuse"
        self._note(Act("", action, f"{source.issuer} {source.uri}", allowed=error is None, detail=error or ""))

    def _bundle_fetcher(self, admission: RegoAdmission) -> BundleFetcher:
        return BundleFetcher(
            admit=partial(self._admit_bundle, admission),
            kept=self._kept_bundles.read,
            changed=self._bundles_changed.set,
            report=self._report_bundle,
            save=self._kept_bundles.keep,
        )

    async def _admit_bundle(self, admission: RegoAdmission, location: BundleLocation, bundle: Bundle) -> None:
        """Whether a bundle goes together with its policy as the folder has it now."""
        for source in self._read.values():
            if source.location == location:
                await admission.admit(source.with_bundle(bundle))

    def _report_bundle(self, status: BundleStatus) -> None:
        location, error = status.location, status.error
        event = "bundle fetched" if error is None else "bundle refused"
        log.info(event, policy=location.policy, url=location.url, revision=status.revision, error=error)
        action = "bundle.take" if error is None else "bundle.refuse"
        detail = f"revision {status.revision}" if error is None else error
        self._note(Act("", action, f"{location.policy} {location.url}", allowed=error is None, detail=detail))

    def _is_registered(self, spiffe_id: SpiffeId) -> bool:
        workloads = self._revision.snapshot.workloads.values() if self._revision else ()
        collector = self._settings.control_principal("collector")
        return str(spiffe_id) == collector or any(workload.principal == str(spiffe_id) for workload in workloads)

    def _surroundings(self, module: str) -> Surroundings:
        ports = self._settings.ports
        return Surroundings(module, (LOOPBACK, ports.check), (LOOPBACK, ports.mtls), str(self._principal))

    def _report_status(self, status: ProxyStatus) -> None:
        kind = status.type_url.rpartition(".")[2]
        subject = f"{status.workload} {kind} {status.resource} {status.version}"
        action = "resource.live" if status.error is None else "resource.refuse"
        self._note(Act("", action, subject, allowed=status.error is None, detail=status.error or ""))

    def _report_live(self, version: str, sidecars: int) -> None:
        self._note(Act("", "revision.live", version, allowed=True, detail=f"{sidecars} sidecars"))

    def _note(self, act: Act) -> None:
        """Records what has happened already. An SVID, by contrast, is not handed out without its record."""
        try:
            self._acts.report(act)
        except OSError as error:
            log.exception("act not recorded", action=act.action, object=act.object, error=str(error))

    # Identity -------------------------------------------------------------------------------------------------------

    def _own_svid(self, now: datetime) -> Svid:
        key, csr = new_key_and_csr()
        svid = Svid(key, issue(self._authority, csr, self._principal, now)[:-1])
        save_svid(self._svid_folder, svid)
        return svid

    @property
    def _svid_folder(self) -> Path:
        return self._settings.state / "control"

    async def _rotate(self) -> None:
        while True:
            due = rotation_time(self._svid, random.random())  # noqa: S311 - spreads load, hides nothing
            await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
            self._svid = self._own_svid(datetime.now(UTC))
            self._check.renew_identity()

    def _collector_channel(self) -> grpc.aio.Channel:
        credentials = channel_credentials(self._roots, self._svid.chain_pem, self._svid.key_pem)
        return open_channel(self._settings.address(self._settings.ports.collector), credentials)

    # Servers --------------------------------------------------------------------------------------------------------

    async def _serve_join(self) -> grpc.aio.Server:
        return await self._serve(self._settings.ports.join, [self._certificates.for_join_port()], require_client=False)

    async def _serve_mtls(self) -> grpc.aio.Server:
        stream = (self._discovery.delta_stream, DeltaDiscoveryRequest, DeltaDiscoveryResponse)
        handlers = [
            self._certificates.for_mtls_port(),
            generic_handler(AGGREGATED_DISCOVERY, streams={"DeltaAggregatedResources": stream}),
            generic_handler(LEASES, policy_lease_methods(self._leases, caller)),
        ]
        return await self._serve(self._settings.ports.mtls, handlers, require_client=True)

    async def _serve(
        self, port: int, handlers: list[grpc.GenericRpcHandler[Any, Any]], *, require_client: bool
    ) -> grpc.aio.Server:
        server = grpc.aio.server(options=server_options)
        server.add_generic_rpc_handlers(tuple(handlers))
        current: Callable[[], tuple[bytes, bytes, bytes]] = lambda: (  # noqa: E731
            self._svid.key_pem,
            self._svid.chain_pem,
            self._roots,
        )
        server.add_secure_port(self._settings.address(port), server_credentials(current, require_client=require_client))
        await server.start()
        return server

    def _serve_metrics(self) -> WSGIServer:
        """For whoever is on this machine: numbers only, which name no workload."""
        registry = CollectorRegistry()
        registry.register(self._check.metrics)
        server, _ = start_http_server(self._settings.ports.metrics, LOOPBACK, registry)
        return server

    async def _serve_operators(self) -> grpc.aio.Server:
        self._settings.operator_socket.unlink(missing_ok=True)
        server = grpc.aio.server(options=server_options)
        join_tokens = join_token_handler(self._tokens, self._is_registered)
        revocations = generic_handler(REVOCATIONS, revocation_methods(self._revocations))
        server.add_generic_rpc_handlers((join_tokens, revocations, operator_acts_handler(self._acts.report)))
        server.add_insecure_port(f"unix:{self._settings.operator_socket}")
        await server.start()
        self._settings.operator_socket.chmod(0o600)
        return server
