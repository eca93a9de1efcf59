"""A mesh on one machine: which processes it is made of, started in order, and ended in the other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import grpc
import structlog

from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE, migrate
from peltast.cli.settings import ControlSettings, sockets_folder
from peltast.identity.attest.service import JOIN_TOKENS_METHOD
from peltast.identity.files import make_private_folder
from peltast.identity.protos.join_pb2 import GenerateRequest, GenerateResponse
from peltast.policies.snapshot import Snapshot, Workload
from peltast.proxy.sidecar.supervise import Supervised

__all__ = ["JOIN_TOKEN_VARIABLE", "Mesh", "MeshSettings", "NotReady"]

JOIN_TOKEN_VARIABLE = "PELTAST_JOIN_TOKEN"  # noqa: S105 - a name

START_SECONDS = 30.0
_POLL_SECONDS = 0.02

log = structlog.get_logger()


class NotReady(RuntimeError):
    """A part of the mesh did not come up in time."""


@dataclass(frozen=True)
class MeshSettings:
    """What a mesh on one machine is told when it is started."""

    configuration: Path
    control: ControlSettings
    concurrency: int
    spool_bytes: int

    @property
    def logs(self) -> Path:
        """The folder of every process's log."""
        return make_private_folder(self.control.state / "logs")


class Mesh:
    """The processes of a mesh. Use as an asynchronous context manager: leaving it ends all of them."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._control = settings.control
        make_private_folder(self._control.state)
        sockets = make_private_folder(sockets_folder(self._control.state) / "pg")
        self._postgres = EmbeddedPostgres(self._control.state / "postgres", sockets)
        self._running: dict[str, tuple[Supervised, asyncio.Task[None]]] = {}

    @property
    def database(self) -> str:
        """Where auditors connect."""
        return self._postgres.url(AUDITOR_ROLE)

    def process(self, name: str) -> Supervised:
        """The process called `name`: postgres, control-plane, collector, agent:NS/NAME, app:NS/NAME."""
        return self._running[name][0]

    async def __aenter__(self) -> Mesh:
        try:
            await self._start_control()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ends every process: first what makes records, last what keeps them."""
        names = list(self._running)
        workloads = [name for name in names if ":" in name]
        await self._end(workloads)
        await self._end([name for name in names if name in ("control-plane", "collector")])
        await self._end(["postgres"])

    async def _start_control(self) -> None:
        await self._postgres.prepare()
        self._start("postgres", self._postgres.command(), stop_signal=signal.SIGINT)
        await self._migrate()
        configuration = ["--config", str(self._settings.configuration)]
        self._start("control-plane", [*self._peltast("control-plane"), *configuration])
        token = await self.join_token(self._control.control_principal("collector"))
        database = ["--database", self._postgres.url(COLLECTOR_ROLE)]
        self._start("collector", [*self._peltast("collector"), *database], {JOIN_TOKEN_VARIABLE: token})
        await self._wait_for_port("127.0.0.1", self._control.ports.collector, "the collector")

    async def reconcile(self, snapshot: Snapshot) -> None:
        """Starts the workloads of `snapshot` that do not run, and ends those that are no more, or run otherwise."""
        wanted = {name: workload for name, workload in snapshot.workloads.items() if workload.command}
        ended = [name for name in self._running if ":" in name and name.partition(":")[2] not in wanted]
        await self._end(ended)
        await asyncio.gather(*(self._start_workload(workload) for workload in wanted.values()))

    async def _start_workload(self, workload: Workload) -> None:
        name = workload.full_name
        if f"agent:{name}" not in self._running:
            token = await self.join_token(workload.principal)
            self._start(f"agent:{name}", self._agent_command(workload), {JOIN_TOKEN_VARIABLE: token})
        if f"app:{name}" not in self._running:
            path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
            environment = {"PATH": path, **workload.environment}
            self._start(f"app:{name}", list(workload.command), environment, self._settings.configuration)

    def _agent_command(self, workload: Workload) -> list[str]:
        digest = hashlib.sha256(workload.full_name.encode()).hexdigest()[:16]
        state = self._control.state / "sidecars" / workload.namespace / workload.name
        sockets = make_private_folder(sockets_folder(self._control.state) / "agents" / digest)
        return [
            *self._peltast("agent"),
            *("--workload", workload.full_name),
            *("--sidecar-state", str(make_private_folder(state))),
            *("--sockets", str(sockets)),
            *("--concurrency", str(self._settings.concurrency)),
            *("--spool-bytes", str(self._settings.spool_bytes)),
        ]

    async def wait_until_ready(self, snapshot: Snapshot) -> None:
        """Waits until every workload's sidecar and application take connections.

        Raises:
            NotReady: one did not in time.
        """
        waits = []
        for workload in snapshot.workloads.values():
            if workload.command:
                name = workload.full_name
                ports = [(port.port, f"the sidecar of {name}") for port in workload.ports]
                ports += [(route.port, f"the sidecar of {name}") for route in workload.routes]
                ports += [(port.target_port, f"the application of {name}") for port in workload.ports]
                waits += [self._wait_for_port(workload.address, port, what) for port, what in ports]
        await asyncio.gather(*waits)

    async def join_token(self, principal: str) -> str:
        """A join token for `principal`, from the control plane, as soon as it is up and knows it.

        Raises:
            NotReady: it is not in time.
        """
        async with asyncio.timeout(START_SECONDS), grpc.aio.insecure_channel(f"unix:{self._control.operator_socket}") as channel:
            generate = channel.unary_unary(
                JOIN_TOKENS_METHOD,
                request_serializer=GenerateRequest.SerializeToString,
                response_deserializer=GenerateResponse.FromString,
            )
            while True:
                try:
                    response: GenerateResponse = await generate(GenerateRequest(spiffe_id=principal))
                except grpc.aio.AioRpcError as error:
                    self._fail_if_ended("control-plane", error.details() or "")
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    return response.token

    def _fail_if_ended(self, name: str, detail: str) -> None:
        pass

    async def _migrate(self) -> None:
        connection = await self._connect(SUPERUSER)
        try:
            await migrate(connection)
        finally:
            await connection.close()

    async def _connect(self, role: str) -> asyncpg.Connection:
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            try:
                return await asyncpg.connect(self._postgres.url(role))
            except (OSError, asyncpg.CannotConnectNowError) as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise NotReady(f"PostgreSQL did not come up: {error}; see {self._settings.logs}/postgres.log") from error
                await asyncio.sleep(_POLL_SECONDS)

    async def _wait_for_port(self, host: str, port: int, what: str) -> None:
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise NotReady(f"{what} does not listen on {host}:{port}; see {self._settings.logs}") from error
                await asyncio.sleep(_POLL_SECONDS)
            else:
                writer.close()
                return

    def _peltast(self, command: str) -> list[str]:
        control = self._control
        return [
            *(sys.executable, "-m", "peltast.cli.main", command),
            *("--state", str(control.state)),
            *("--trust-domain", control.trust_domain),
            *("--base-port", str(control.base_port)),
        ]

    def _start(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        log_file = self._settings.logs / f"{name.replace(':', '-').replace('/', '.')}.log"
        process = Supervised(name, command, {**os.environ, **(environment or {})}, log_file, folder, stop_signal)
        self._running[name] = (process, asyncio.create_task(process.run(), name=name))

    async def _end(self, names: list[str]) -> None:
        tasks = [self._running.pop(name)[1] for name in names if name in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
