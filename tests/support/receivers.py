"""What exports are sent to in tests: a real rsyslog, a real OpenTelemetry collector, a server that fails on demand."""

from __future__ import annotations

import asyncio
import gzip
import importlib.metadata
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from peltast.audit.protos.otlp_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse, LogRecord

DEADLINE_SECONDS = 30.0

RSYSLOGD = shutil.which("rsyslogd", path="/usr/sbin:/usr/bin:/sbin:/bin")


def rotel() -> Path | None:
    """The collector of the wheel `rotel` (Streamfold's, in Rust), where it was installed."""
    try:
        folder = importlib.metadata.distribution("rotel").locate_file("rotel")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(folder)) / "rotel-agent"


def free_port() -> int:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def until(what: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not what():
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def accepts(port: int) -> bool:
    with closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Rsyslog:
    """The real rsyslogd. It writes what it has understood of a message, before it takes the next."""

    def __init__(self, folder: Path, tls: Path | None = None) -> None:
        """`tls`: a folder with authority.pem, certificate.pem and key.pem."""
        self.port = free_port()
        self._folder = folder
        self._file = folder / "messages"
        (folder / "rsyslog.conf").write_text(self._configuration(tls))

    def _configuration(self, tls: Path | None) -> str:
        files = f"""
            defaultNetstreamDriverCAFile="{tls}/authority.pem"
            defaultNetstreamDriverCertFile="{tls}/certificate.pem"
            defaultNetstreamDriverKeyFile="{tls}/key.pem" """
        driver = 'StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="anon"'
        return f"""
            global(workDirectory="{self._folder}" maxMessageSize="1m" {files if tls else ""})
            main_queue(queue.type="Direct")
            module(load="imtcp" {driver if tls else ""})
            template(name="parsed" type="string" string="%pri% %app-name% %msgid% %structured-data% %msg%\\n")
            input(type="imtcp" port="{self.port}" address="127.0.0.1")
            action(type="omfile" file="{self._file}" template="parsed")
            """

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [str(RSYSLOGD), "-n", "-f", str(self._folder / "rsyslog.conf"), "-i", str(self._folder / "pid")]
        (self._folder / "pid").unlink(missing_ok=True)
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: accepts(self.port), process)
                yield process
            finally:
                process.kill()

    def lines(self) -> list[str]:
        text = self._file.read_text() if self._file.exists() else ""
        return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[line.index("{") :]) for line in self.lines()]


@contextmanager
def rotel_running(program: Path, forward_to: int) -> Iterator[int]:
    """A collector that takes OTLP over HTTP at the port given, and sends it on to another of the same."""
    port, grpc_port = free_port(), free_port()
    listen = ["--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc_port}"]
    target = ["--otlp-exporter-endpoint", f"http://127.0.0.1:{forward_to}", "--otlp-exporter-protocol", "http"]
    command = [str(program), "start", *listen, "--exporter", "otlp", *target]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: accepts(port), process)
            yield port
        finally:
            process.kill()


class HttpServer:
    """An HTTP/1.1 server that keeps what it is sent, and answers what it is told to: OTLP, or nothing but a status."""

    def __init__(self, port: int = 0) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        """What the next requests are answered, before all others get 200."""
        self.bodies: list[bytes] = []
        self.heads: list[str] = []
        self.port = port

    async def __aenter__(self) -> HttpServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(line[15:]) for line in head.lower().splitlines() if line.startswith("content-length:"))
        body = await reader.readexactly(length)
        status, headers, answer = self.answers.pop(0) if self.answers else (200, {}, b"")
        self.heads.append(head)
        if status == 200:
            self.bodies.append(gzip.decompress(body) if "content-encoding: gzip" in head.lower() else body)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        start = f"HTTP/1.1 {status} X\r\n{lines}connection: close\r\ncontent-length: {len(answer)}\r\n\r\n"
        writer.write(start.encode() + answer)
        writer.close()

    def requests(self) -> list[ExportLogsServiceRequest]:
        return [ExportLogsServiceRequest.FromString(body) for body in self.bodies]

    def records(self) -> list[LogRecord]:
        """The log records of all requests, in their order."""
        logs = [logs for request in self.requests() for logs in request.resource_logs]
        return [record for each in logs for scope in each.scope_logs for record in scope.log_records]


def rejecting(number: int) -> bytes:
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = number
    answer.partial_success.error_message = "too old"
    return answer.SerializeToString()
