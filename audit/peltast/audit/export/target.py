"""Where an export goes: a URL, and what proves who we are to whoever is there."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from peltast.audit.export.http import JsonLinesReceiver, OtlpReceiver
from peltast.audit.export.lines import FileReceiver
from peltast.audit.export.receiver import Receiver
from peltast.audit.export.syslog import SyslogReceiver

__all__ = ["InvalidTarget", "Trust", "open_receiver", "read_secret"]

SYSLOG_PORT, SYSLOG_TLS_PORT = 601, 6514
"""RFC 3195 and RFC 5425, section 4.1."""

OTLP_PATH = "/v1/logs"

_SCHEMES = "file, syslog+tcp, syslog+tls, http, https, otlp+http or otlp+https"


class InvalidTarget(ValueError):
    """A URL, or a file, that cannot be used."""


@dataclass(frozen=True)
class Trust:
    """Whom we trust, by a file of certificates (the system's, if None), and how we prove who we are."""

    authority: Path | None = None
    certificate: Path | None = None
    """A certificate with its key, in PEM."""
    authorization: str = ""
    """The value of HTTP's ``Authorization``."""

    def tls(self) -> ssl.SSLContext:
        """A context that checks certificate and name of a server."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
            if self.certificate is not None:
                check_private(self.certificate)
                context.load_cert_chain(self.certificate)
        except (OSError, ssl.SSLError) as error:
            raise InvalidTarget(f"{self.authority or ''} {self.certificate or ''}: {error}".strip()) from error
        return context

    @property
    def headers(self) -> Mapping[str, str]:
        """What goes with every request."""
        return {"authorization": self.authorization} if self.authorization else {}


def open_receiver(url: str, name: str, trust: Trust) -> Receiver:
    """The receiver at `url`, of the export `name`.

    Raises:
        InvalidTarget: see there.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise InvalidTarget("the URL holds a name or a password, which anybody could read: give --authorization")
    if parts.scheme == "file":
        return _folder(parts, name)
    if not parts.hostname:
        raise InvalidTarget(f"{url!r}: a URL with a host is expected; its scheme is {_SCHEMES}")
    match parts.scheme:
        case "syslog+tcp":
            return SyslogReceiver(parts.hostname, _port(parts, SYSLOG_PORT), None)
        case "syslog+tls":
            return SyslogReceiver(parts.hostname, _port(parts, SYSLOG_TLS_PORT), trust.tls())
        case "http" | "https":
            return JsonLinesReceiver(_checked(parts, trust).geturl(), trust.tls(), trust.headers)
        case "otlp+http" | "otlp+https":
            plain = _checked(parts, trust)._replace(scheme=parts.scheme.removeprefix("otlp+"))
            path = parts.path.rstrip("/") or OTLP_PATH
            return OtlpReceiver(plain._replace(path=path).geturl(), trust.tls(), trust.headers)
        case _:
            raise InvalidTarget(f"the scheme {parts.scheme!r} is given; {_SCHEMES} is expected")


def read_secret(file: Path) -> str:
    """The line in `file`, which nobody but its owner may read.

    Raises:
        InvalidTarget: see there.
    """
    check_private(file)
    return file.read_text().strip()


def check_private(file: Path) -> None:
    """Refuses a file with a secret that others may read."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise InvalidTarget(f"{file}: {error.strerror}") from error
    if mode & 0o077:
        raise InvalidTarget(f"{file} has mode {mode & 0o777:04o}: others may read it; 0600 is expected")


def _folder(parts: SplitResult, name: str) -> Receiver:
    folder = Path(parts.path)
    if parts.netloc or not folder.is_dir():
        raise InvalidTarget(f"{parts.geturl()!r}: file:///FOLDER is expected, and the folder must be there")
    return FileReceiver(folder, name)


def _port(parts: SplitResult, default: int) -> int:
    try:
        return parts.port or default
    except ValueError as error:
        raise InvalidTarget(f"{parts.geturl()!r}: {error}") from error


def _checked(parts: SplitResult, trust: Trust) -> SplitResult:
    """`parts`, if what goes there may: no credentials without TLS."""
    _port(parts, 0)
    if parts.scheme.endswith("http") and trust.authorization:
        raise InvalidTarget(f"{parts.geturl()!r}: credentials go over https only")
    return parts
