"""Syslog: messages of RFC 5424, counted (RFC 6587 section 3.4.1), over TCP or TLS (RFC 5425).

The protocol has no acknowledgement. So each batch has a connection of its own, which we end and the receiver must end
too: it does so once it has read all of it.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress

from peltast.audit.export.receiver import Entry, Unavailable

__all__ = ["SyslogReceiver", "message"]

TIMEOUT_SECONDS = 10.0

_LOG_AUDIT = 13
"""The facility, RFC 5424 section 6.2.1."""

_SEVERITIES = {1: 6, 3: 4, 4: 3}
"""OCSF's Informational, Medium and High are syslog's Informational, Warning and Error."""

_MAX_SEQUENCE_ID = 2**31 - 1
"""RFC 5424 section 7.3.1: then it begins again with 1."""


class SyslogReceiver:
    """A syslog server at `host` and `port`; with `tls`, its certificate must be for `host`."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._address = (host, port)
        self._tls = tls
        self._hostname = socket.gethostname() or "-"

    async def send(self, entries: Sequence[Entry]) -> None:
        messages = [message(entry, self._hostname) for entry in entries]
        data = b"".join(b"%d %s" % (len(each), each) for each in messages)
        try:
            await asyncio.to_thread(self._deliver, data)
        except OSError as error:  # ssl.SSLError, TimeoutError
            host, port = self._address
            raise Unavailable(f"{host}:{port}: {error or type(error).__name__}") from error

    async def close(self) -> None:
        pass

    def _deliver(self, data: bytes) -> None:
        connection = socket.create_connection(self._address, TIMEOUT_SECONDS)
        if self._tls is not None:
            with connection, self._tls.wrap_socket(connection, server_hostname=self._address[0]) as session:
                session.sendall(data)
                # RFC 5425 section 4.4 asks for a close_notify in answer to ours. rsyslog with GnuTLS only ends TCP.
                with suppress(ssl.SSLEOFError):
                    session.unwrap()
            return
        with connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            if connection.recv(1):
                raise ConnectionError("a syslog server says nothing; this one does")


def message(entry: Entry, hostname: str) -> bytes:
    """A record in RFC 5424: registered structured data, and the event as JSON in ASCII."""
    row, event = entry.row, entry.event
    priority = _LOG_AUDIT * 8 + _SEVERITIES[event["severity_id"]]
    version = event["metadata"]["product"]["version"]
    data = f'[origin software="peltast" swVersion="{version}"][meta sequenceId="{row["leaf"] % _MAX_SEQUENCE_ID + 1}"]'
    time = f"{row['time']:%Y-%m-%dT%H:%M:%S.%f}Z"
    head = f"<{priority}>1 {time} {hostname} peltast - {row['kind'] or '-'} {data} "
    return (head + json.dumps(event, separators=(",", ":"))).encode("ascii")
