"""URLs of databases: what is taken, and how one is shown."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

__all__ = ["DatabaseUnusable", "as_role", "check_database_url", "with_password", "without_password"]

_SCHEMES = ("postgresql", "postgres")
_OF_THE_USER = frozenset({"user", "password", "passfile", "sslcert", "sslkey", "sslpassword"})


class DatabaseUnusable(ValueError):
    """The database cannot be used as a store."""


def check_database_url(url: str) -> str:
    """Gives `url` if it says where the database is, and if what goes to another host is encrypted and its name checked.

    Raises:
        DatabaseUnusable: see there.
    """
    parts, options = _parse(url)
    hosts = list(_hosts(parts, options))
    if "service" in options or not all(hosts):
        raise DatabaseUnusable(
            f"{without_password(url)}: the host is expected in the URL, postgresql://ROLE@HOST/DATABASE"
        )
    remote = [host for host in hosts if not _is_local(host)]
    if remote and options.get("sslmode") != "verify-full":
        advice = "add sslmode=verify-full, and sslrootcert=FILE with the CA that signed its certificate"
        raise DatabaseUnusable(f"{without_password(url)}: {remote[0]} is another host; {advice}")
    return url


def as_role(url: str, role: str, passwords: str) -> str:
    """`url` for another role, whose password is in the file `passwords` (libpq's passfile)."""
    parts, options = _parse(url)
    kept = {name: value for name, value in options.items() if name not in _OF_THE_USER}
    netloc = f"{quote(role)}@{parts.netloc.rpartition('@')[2]}"
    return parts._replace(netloc=netloc, query=urlencode({**kept, "passfile": passwords}, safe="/:,")).geturl()


def with_password(url: str, password: str) -> str:
    """`url` with a password, if it has none."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    return url if ":" in user else parts._replace(netloc=f"{user}:{quote(password, safe='')}{at}{place}").geturl()


def without_password(url: str) -> str:
    """`url` as it may be shown."""
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    options = [(name, value) for name, value in parse_qsl(parts.query) if "password" not in name]
    shown = parts._replace(netloc=user.partition(":")[0] + at + place, query=urlencode(options, safe="/:,"))
    return shown.geturl() if parts.scheme in _SCHEMES else f"{parts.scheme}:…"


def _parse(url: str) -> tuple[SplitResult, dict[str, str]]:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise DatabaseUnusable(f"{without_password(url)}: a URL such as postgresql://ROLE@HOST/DATABASE is expected")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise DatabaseUnusable(f"{without_password(url)}: an option is given twice")
    return parts, options


def _hosts(parts: SplitResult, options: dict[str, str]) -> Iterator[str]:
    """Every host that may be connected to; "" where one would come from the environment."""
    named = parts.netloc.rpartition("@")[2]
    for text in named.split(",") if named else ():
        yield unquote(text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0])
    if not named or "host" in options:
        yield from options.get("host", "").split(",")


def _is_local(host: str) -> bool:
    if host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
