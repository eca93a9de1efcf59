"""A mesh on one machine: which processes it is made of, started in order, and ended in the other."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from peltast.audit.store.embedded import SUPERUSER, EmbeddedPostgres
from peltast.audit.store.errors import DATABASE_ERRORS
from peltast.audit.store.migrate import AUDITOR_ROLE, COLLECTOR_ROLE, migrate
from peltast.audit.store.url import DatabaseUnusable, without_password
from peltast.cli.external import ExternalPostgres
from peltast.cli.readiness import envoy_is_ready, takes_connections, wait_until
from peltast.cli.settings import (
    JOIN_TOKEN_VARIABLE,
    LOOPBACK,
    REDIS_VARIABLE,
    ControlSettings,
    sidecar_state,
    sockets_folder,
)
from peltast.identity.attest.service import JOIN_TOKENS_METHOD
from peltast.identity.files import make_private_folder, write_private
from peltast.identity.protos.join_pb2 import GenerateRequest, GenerateResponse
from peltast.policies.snapshot import Snapshot, Workload
from peltast.proxy.sidecar.supervise import Supervised

__all__ = ["Mesh", "MeshSettings", "StateInUse"]

_LAST_LINES = 10
_TOKEN_SECONDS = 2.0


class StateInUse(RuntimeError):
    """Another mesh runs on the same state."""


@dataclass(frozen=True)
class MeshSettings:
    """What a mesh on one machine is told when it is started."""

    configuration: Path
    control: ControlSettings
    concurrency: int
    spool_bytes: int
    database: str | None = None
    """The owner's URL of a PostgreSQL that others run."""
    checkpoints: tuple[str, ...] = ()
    redis: str | None = None
    """Where is counted what all sidecars count together."""

    @property
    def logs(self) -> Path:
        """The folder of every process's log."""
        return make_private_folder(self.control.state / "logs")


@dataclass(frozen=True)
class _Running:
    process: Supervised
    task: asyncio.Task[None]
    workload: Workload | None


class Mesh:
    """The processes of a mesh. Use as an asynchronous context manager: leaving it ends all of them."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings
        self._control = settings.control
        make_private_folder(self._control.state)
        self._sockets = sockets_folder(self._control.state)
        self._postgres = self._store()
        self._running: dict[str, _Running] = {}

    def _store(self) -> EmbeddedPostgres | ExternalPostgres:
        if self._settings.database is not None:
            return ExternalPostgres(self._settings.database, self._control.state / "control")
        return EmbeddedPostgres(self._control.state / "postgres", make_private_folder(self._sockets / "pg"))

    @property
    def database(self) -> str:
        """Where auditors connect."""
        return self._postgres.url(AUDITOR_ROLE)

    def process(self, name: str) -> Supervised:
        """The process called `name`: postgres, control-plane, collector, agent:NS/NAME, app:NS/NAME."""
        return self._running[name].process

    async def __aenter__(self) -> Mesh:
        """Starts everything but workloads.

        Raises:
            StateInUse: see there.
            DatabaseUnusable: the PostgreSQL that others run cannot be the store.
            NotReady: a part did not come up in time.
        """
        self._lock = _lock(self._control.state / "lock")
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
        await self._end([name for name in self._running if ":" in name])
        await self._end(["control-plane", "collector"])
        await self._end(["postgres"])
        os.close(self._lock)

    async def _start_control(self) -> None:
        _hide_from_version_control(self._control.state)
        if isinstance(self._postgres, ExternalPostgres):
            await self._migrate_external(self._postgres)
        else:
            await self._start_embedded(self._postgres)
        configuration = ["--config", str(self._settings.configuration.absolute())]
        # Not on a command line, which every user of the machine can read.
        environment = {REDIS_VARIABLE: self._settings.redis} if self._settings.redis is not None else {}
        self._start("control-plane", [*self._peltast("control-plane"), *configuration], environment)
        principal = self._control.control_principal("collector")
        await self._wait_for_control_plane(principal)
        database = ["--database", self._postgres.url(COLLECTOR_ROLE)]
        sinks = [argument for sink in self._settings.checkpoints for argument in ("--checkpoints", sink)]
        self._start("collector", [*self._peltast("collector"), *database, *sinks], principal=principal)
        port = self._control.ports.collector
        await wait_until(lambda: takes_connections(LOOPBACK, port), self._complaint("collector"))

    # Workloads ------------------------------------------------------------------------------------------------------

    async def reconcile(self, snapshot: Snapshot) -> None:
        """Starts the workloads of `snapshot` that do not run, and ends those that are no more, or run otherwise."""
        wanted = {name: workload for name, workload in snapshot.workloads.items() if workload.command}
        await self._end([name for name, running in self._running.items() if _is_unwanted(name, running, wanted)])
        await asyncio.gather(*(self._start_workload(workload) for workload in wanted.values()))

    async def _start_workload(self, workload: Workload) -> None:
        name = workload.full_name
        if f"agent:{name}" not in self._running:
            await self._wait_for_control_plane(workload.principal)
            command = self._agent_command(workload)
            self._start(f"agent:{name}", command, principal=workload.principal, workload=workload)
        if f"app:{name}" not in self._running:
            # `python` is ours: an application may need what is installed beside us.
            path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
            environment = {"PATH": path, **workload.environment}
            folder = self._settings.configuration
            self._start(f"app:{name}", list(workload.command), environment, folder=folder, workload=workload)

    def _agent_command(self, workload: Workload) -> list[str]:
        state = sidecar_state(self._control.state, workload.namespace, workload.name)
        return [
            *self._peltast("agent"),
            *("--workload", workload.full_name),
            *("--sidecar-state", str(make_private_folder(state))),
            *("--sockets", str(self.agent_sockets(workload))),
            *("--concurrency", str(self._settings.concurrency)),
            *("--spool-bytes", str(self._settings.spool_bytes)),
        ]

    def agent_sockets(self, workload: Workload) -> Path:
        """The folder of an agent's sockets, which has Envoy's admin socket, too."""
        digest = hashlib.sha256(workload.full_name.encode()).hexdigest()[:16]
        return make_private_folder(self._sockets / "agents" / digest)

    async def wait_until_ready(self, snapshot: Snapshot) -> None:
        """Waits until every workload's sidecar and application take connections.

        Raises:
            NotReady: one did not in time.
        """
        started = (workload for workload in snapshot.workloads.values() if workload.command)
        await asyncio.gather(*(self._wait_for_workload(workload) for workload in started))

    async def _wait_for_workload(self, workload: Workload) -> None:
        admin = self.agent_sockets(workload) / "admin.sock"
        name = workload.full_name
        await wait_until(lambda: envoy_is_ready(admin), self._complaint(f"agent:{name}"))
        for port in workload.ports:
            number = port.target_port
            await wait_until(lambda n=number: takes_connections(workload.address, n), self._complaint(f"app:{name}"))  # type: ignore[misc]

    async def _wait_for_control_plane(self, principal: str) -> None:
        """Waits until the control plane is up and knows `principal`.

        Raises:
            NotReady: it is not in time.
        """

        async def knows() -> bool:
            return await self._join_token(principal) is not None

        await wait_until(knows, self._complaint("control-plane"))

    async def _join_token(self, principal: str) -> str | None:
        """A join token for `principal`; none where the control plane is away, or does not know it."""
        async with grpc.aio.insecure_channel(f"unix:{self._control.operator_socket}") as channel:
            generate = channel.unary_unary(
                JOIN_TOKENS_METHOD,
                request_serializer=GenerateRequest.SerializeToString,
                response_deserializer=GenerateResponse.FromString,
            )
            try:
                response: GenerateResponse = await generate(
                    GenerateRequest(spiffe_id=principal), timeout=_TOKEN_SECONDS
                )
            except grpc.aio.AioRpcError:
                return None
            return str(response.token)

    # Processes ------------------------------------------------------------------------------------------------------

    async def _start_embedded(self, postgres: EmbeddedPostgres) -> None:
        await postgres.prepare()
        postgres.remove_stale_lock()
        self._start("postgres", postgres.command(), stop_signal=signal.SIGINT)
        opened: list[asyncpg.Connection[Any]] = []

        async def connected() -> bool:
            try:
                opened.append(await asyncpg.connect(postgres.url(SUPERUSER)))
            except (OSError, *DATABASE_ERRORS):
                return False
            return True

        await wait_until(connected, self._complaint("postgres"))
        try:
            await migrate(opened[0])
        finally:
            await opened[0].close()

    async def _migrate_external(self, postgres: ExternalPostgres) -> None:
        url = postgres.url(SUPERUSER)
        try:
            connection = await asyncpg.connect(url)
            try:
                await migrate(connection)
                await postgres.set_passwords(connection)
            finally:
                await connection.close()
        except (OSError, *DATABASE_ERRORS) as error:
            raise DatabaseUnusable(f"{without_password(url)}: {error}") from error

    def _peltast(self, command: str) -> list[str]:
        control = self._control
        return [
            *(sys.executable, "-m", "peltast.cli.main", command),
            *("--state", str(control.state.absolute())),
            *("--trust-domain", control.trust_domain),
            *("--base-port", str(control.base_port)),
        ]

    def _log_file(self, name: str) -> Path:
        return self._settings.logs / f"{name.replace(':', '-').replace('/', '.')}.log"

    def _complaint(self, name: str) -> Callable[[], str]:
        """What to say when the process called `name` is not up in time: its own last words."""
        file = self._log_file(name)
        return lambda: f"{name} is not up; the end of {file}:\n" + "\n".join(_last_lines(file))

    def _start(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str] | None = None,
        *,
        folder: Path | None = None,
        principal: str | None = None,
        workload: Workload | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Starts a process and keeps it running; one with a `principal` has a new join token at every start."""

        async def whole_environment() -> Mapping[str, str]:
            # Without a token, an SVID that was kept serves: an agent starts while the control plane is away.
            token = await self._join_token(principal) if principal else None
            return {**os.environ, **(environment or {}), **({JOIN_TOKEN_VARIABLE: token} if token else {})}

        process = Supervised(name, command, whole_environment, self._log_file(name), folder, stop_signal)
        self._running[name] = _Running(process, asyncio.create_task(process.run(), name=name), workload)

    async def _end(self, names: list[str]) -> None:
        tasks = [self._running.pop(name).task for name in names if name in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_unwanted(name: str, running: _Running, wanted: Mapping[str, Workload]) -> bool:
    """Whether `running` is of a workload that is no more, or that is to be started otherwise."""
    known = running.workload
    if known is None:
        return False
    now = wanted.get(known.full_name)
    if now is None or (known.principal, known.address) != (now.principal, now.address):
        return True
    same_command = (known.command, known.environment) == (now.command, now.environment)
    return name.startswith("app:") and not same_command


def _last_lines(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines()[-_LAST_LINES:] if file.exists() else []


def _hide_from_version_control(state: Path) -> None:
    """Keys must not be committed by an unthinking `git add`."""
    write_private(state / ".gitignore", b"*\n")


def _lock(file: Path) -> int:
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StateInUse(f"another mesh runs on {file.parent}; end it, or give --state") from error
    return descriptor
