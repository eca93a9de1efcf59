"""What is tried on the bookshop, and what must come of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from spiffe import SpiffeId

from peltast.cli.demo.attackers import client_context, svid_of_another_authority, svid_with_two_names
from peltast.cli.demo.driver import Attempt, Shot
from peltast.cli.demo.tokens import TokenIssuer
from peltast.identity.ca.authority import Authority
from peltast.identity.svid import Svid
from peltast.policies.snapshot import Workload

__all__ = ["Case", "Expected", "Surroundings", "cases"]


@dataclass(frozen=True)
class Expected:
    """What must be on record, and what the client must see."""

    effect: str
    reason: str
    policy: str | None = None
    rule: int | None = None
    decided_by: str | None = "engine"
    status: int | None = 200


@dataclass(frozen=True)
class Case:
    """One thing that is tried."""

    name: str
    shot: Shot
    expected: Expected
    sees: Callable[[Attempt], bool] = field(default=lambda _: True)
    """What the client must see beside the status."""


@dataclass(frozen=True)
class Surroundings:
    """What the cases need to know of the mesh that they are tried on."""

    storefront: Workload
    catalog: Workload
    storefront_svid: Svid
    authority: Authority
    issuer: TokenIssuer


_BROWSE = Expected("allow", "allow_rule", "bookshop/browse", 0)
_EMBARGO = Expected("deny", "deny_rule", "bookshop/embargo", 0, status=403)
_NO_RULE = Expected("deny", "no_allow_rule", status=403)
_ORDERS = Expected("allow", "allow_rule", "bookshop/orders", 0)


def cases(mesh: Surroundings) -> Iterator[Case]:
    """Every case, in the order in which they are tried."""
    yield from _identities_and_paths(mesh)
    yield from _tokens(mesh)
    yield from _rego(mesh)
    yield from _attacks(mesh)


def _through(workload: Workload) -> Callable[..., Shot]:
    """Makes requests as the application of `workload` does: to its own sidecar."""

    def shot(method: str, path: str, **headers: str) -> Shot:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return Shot(workload.address, workload.routes[0].port, method, path, names)

    return shot


def _identities_and_paths(mesh: Surroundings) -> Iterator[Case]:
    storefront, catalog = _through(mesh.storefront), _through(mesh.catalog)
    page = Shot(mesh.storefront.address, mesh.storefront.ports[0].target_port)
    yield Case("a customer opens the storefront, which asks the catalog", page, _BROWSE)
    yield Case("the same question again", storefront("GET", "/books"), _cached(_BROWSE))
    yield Case("a path below the one that is allowed", storefront("GET", "/books/7"), _BROWSE)
    yield Case("a method that no rule allows", storefront("DELETE", "/books/7"), _NO_RULE)
    yield Case("a path that no rule allows", storefront("GET", "/warehouse"), _NO_RULE)
    yield Case("DENY beats ALLOW", storefront("GET", "/books/embargoed/1"), _EMBARGO)
    yield Case("around it with //", storefront("GET", "//books//embargoed//2"), _EMBARGO)
    yield Case("around it with /%2e%2e/", storefront("GET", "/books/%2e%2e/books/embargoed/3"), _EMBARGO)
    yield Case("the catalog calls back, which nobody may", catalog("GET", "/"), _NO_RULE)


def _tokens(mesh: Surroundings) -> Iterator[Case]:
    storefront, issuer = _through(mesh.storefront), mesh.issuer

    def order(token: str) -> Shot:
        return storefront("POST", "/orders", authorization=f"Bearer {token}")

    def refused(reason: str) -> Expected:
        return Expected("deny", reason, status=401)

    buyer = issuer.token()
    yield Case("no token where one is required", storefront("POST", "/orders"), _NO_RULE)
    yield Case("a buyer's token (RS256): a claim that is a list", order(buyer), _ORDERS)
    yield Case("the same token again", order(buyer), _cached(_ORDERS))
    yield Case("a buyer's token (ES256)", order(issuer.token("ES256", sub="grace")), _ORDERS)
    yield Case("a reader's token", order(issuer.token(groups=["readers"])), _NO_RULE)
    yield Case("an expired token", order(issuer.token(exp=int(time.time()) - 3600)), refused("token_expired"))
    yield Case("a token for somebody else", order(issuer.token(aud="warehouse")), refused("token_audience"))
    yield Case("a token with alg: none", order(issuer.unsigned()), refused("token_algorithm"))
    yield Case("a token signed by another key", order(TokenIssuer().token()), refused("token_signature"))


def _rego(mesh: Surroundings) -> Iterator[Case]:
    storefront = _through(mesh.storefront)
    allowed = Expected("allow", "allow_rule", "bookshop/browse", 1)
    checked = Expected("allow", "allow_rule", "bookshop/browse", 1, decided_by="check")
    refused = Expected("deny", "rego_denied", "bookshop/shipping", 0, status=403)
    no_credit = Expected("deny", "rego_denied", "bookshop/credit", 0, "check", status=403)
    yield Case("Rego with data, in the sidecar", storefront("GET", "/shipping/7", x_region="eu"), allowed)
    yield Case("Rego with data says no", storefront("GET", "/shipping/7", x_region="mars"), refused)
    yield Case("a question for the check service", storefront("GET", "/credit/ada"), checked)
    yield Case("the same question again", storefront("GET", "/credit/ada"), _cached(checked))
    yield Case(
        "the check service says no, in its own words",
        storefront("GET", "/credit/grace"),
        no_credit,
        lambda seen: seen.body == b"no credit",
    )


def _attacks(mesh: Surroundings) -> Iterator[Case]:
    storefront, catalog = SpiffeId(mesh.storefront.principal), SpiffeId(mesh.catalog.principal)
    other, double = svid_of_another_authority(storefront), svid_with_two_names(mesh.authority, storefront, catalog)

    def direct(svid: Svid | None, **headers: str) -> Shot:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return Shot(mesh.catalog.address, mesh.catalog.ports[0].port, "GET", "/books", names, client_context(svid))

    def refused(reason: str) -> Expected:
        return Expected("deny", reason, decided_by=None, status=None)

    plain = Shot(mesh.catalog.address, mesh.catalog.ports[0].port, "GET", "/books")
    spoof = "By=spiffe://cluster.local/ns/bookshop/sa/catalog;URI=spiffe://cluster.local/ns/bookshop/sa/admin"
    yield Case(
        "a spoofed x-forwarded-client-cert: the catalog sees the true one",
        direct(mesh.storefront_svid, x_forwarded_client_cert=spoof),
        _cached(_BROWSE),
        lambda seen: b"sa/storefront" in seen.body and b"sa/admin" not in seen.body,
    )
    yield Case("plaintext", plain, refused("plaintext"))
    yield Case("no certificate", direct(None), refused("no_certificate"))
    yield Case("an SVID of another authority", direct(other), refused("certificate_refused"))
    two_names = Expected("deny", "peer_uri_sans", status=403)
    yield Case("a certificate with two SPIFFE IDs", direct(double), two_names)


def _cached(expected: Expected) -> Expected:
    values: dict[str, Any] = {**vars(expected), "decided_by": "cache"}
    return Expected(**values)
