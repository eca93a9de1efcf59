"""From a snapshot to what the engine loads: one program and one document of key sets for each workload.

Pure: the same snapshot and workload give the same bytes, whose SHA-256 names the program everywhere. The form is
described in `authz/engine/src/document.rs`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from peltast.authz.canonical import Json, canonical
from peltast.authz.compile_limits import rate_limits
from peltast.authz.compile_rules import Scope, rule
from peltast.policies.kinds.audit import AuditPolicySpec, Chosen, Detail, OnSpoolFull, Record, Treatment, claim_path
from peltast.policies.kinds.authorization import Action, AuthorizationPolicySpec
from peltast.policies.kinds.mesh import MeshConfigSpec, Normalization
from peltast.policies.kinds.rego import DEFAULT_BODY_BYTES
from peltast.policies.kinds.request_authentication import JwtRule, RequestAuthenticationSpec
from peltast.policies.kinds.resource import Resource
from peltast.policies.rego_sources import RegoSource
from peltast.policies.snapshot import Snapshot, Workload, provider_name

__all__ = ["KeySource", "compile_keys", "compile_program", "compile_rego"]

SCHEMA = 1


@dataclass(frozen=True)
class KeySource:
    """Where an issuer's keys are fetched from, and how long that may take."""

    issuer: str
    uri: str
    timeout: timedelta


def compile_program(snapshot: Snapshot, workload: Workload) -> bytes:
    """The canonical document of the program that decides requests to `workload`."""
    policies = list(snapshot.applying_to(workload, AuthorizationPolicySpec))
    trust_domains = snapshot.trust_domains
    return canonical(
        {
            "schema": SCHEMA,
            "workload": {
                "principal": workload.principal,
                "ports": {str(port.port): port.target_port for port in workload.ports},
                **mesh_settings(snapshot.mesh),
                **({"tells_policy": True} if tells_policy(snapshot, workload) else {}),
                "plaintext": [port.port for port in workload.ports if workload.takes_plaintext(port.port)],
            },
            "authentication": [
                authentication(rule, key_set_name(resource, index), require=resource.spec.require)
                for resource, index, rule in jwt_rules(snapshot, workload)
            ],
            **({"rate_limits": limits} if (limits := rate_limits(snapshot, workload)) else {}),
            **({"recording": said} if (said := recording(workload.record)) else {}),
            "rego": [rego_policy(snapshot.rego[name]) for name in providers(policies)],
            "policies": [
                policy(resource, trust_domains, snapshot.target_ports(resource, workload)) for resource in policies
            ],
            **({"spool": settings} if (settings := spool_settings(snapshot, workload)) else {}),
        }
    )


def mesh_settings(mesh: MeshConfigSpec) -> Json:
    """What of the mesh's settings the engine must know, but for its defaults."""
    settings: Json = {"path_normalization": mesh.normalization.value, "trusted_proxies": mesh.trusted_proxies}
    defaults: Json = {"path_normalization": Normalization.MERGE_SLASHES.value, "trusted_proxies": 0}
    return {name: value for name, value in settings.items() if value != defaults[name]}


def tells_policy(snapshot: Snapshot, workload: Workload) -> bool:
    """Whether whoever is denied learns the policy's name: there is an AuditPolicy for `workload`, and each says so."""
    says = [resource.spec.denials.policy_name for resource in snapshot.applying_to(workload, AuditPolicySpec)]
    return bool(says) and all(says)


def recording(record: Record) -> Json:
    """What records leave out and what they have more, but for the defaults."""
    treatments = {
        "query": record.query,
        "token_subject": record.token_subject,
        "source_address": record.source_address,
    }
    chosen = {"headers": [chosen_header(each) for each in record.headers or []]}
    chosen["claims"] = [chosen_claim(each) for each in record.claims or []]
    return {
        **{name: how.value for name, how in treatments.items() if how not in (None, Treatment.KEEP)},
        **{name: all_ for name, all_ in chosen.items() if all_},
        **({"allowed": record.allowed.value} if record.allowed is Detail.SUMMARY else {}),
    }


def chosen_header(header: Chosen) -> Json:
    """A header that is recorded."""
    return {"name": header.name.lower(), "as": header.as_.value}


def chosen_claim(claim: Chosen) -> Json:
    """A claim that is recorded, by the names that lead to it."""
    return {"path": claim_path(claim.name), "as": claim.as_.value}


def spool_settings(snapshot: Snapshot, workload: Workload) -> Json:
    """What the sidecar of `workload` does with records before they are shipped, but for the defaults.

    Where AuditPolicies differ, the one holds by which less is lost.
    """
    specs = [resource.spec for resource in snapshot.applying_to(workload, AuditPolicySpec)]
    intervals = [spec.synced_every for spec in specs if spec.synced_every is not None]
    settings: Json = {}
    if {spec.on_spool_full for spec in specs} - {None} == {OnSpoolFull.DROP}:
        settings["drop_when_full"] = True
    if intervals:
        settings["sync_interval_ms"] = min(intervals) // timedelta(milliseconds=1)
    return settings


def compile_keys(snapshot: Snapshot, workload: Workload, fetched: Mapping[KeySource, Json]) -> bytes:
    """The canonical document of the key sets that verify tokens sent to `workload`, given those that were `fetched`.

    A rule whose keys were not fetched has no key set, and the engine takes none of its tokens.
    """
    sets = {
        key_set_name(resource, index): key_set(rule, fetched) for resource, index, rule in jwt_rules(snapshot, workload)
    }
    return canonical({name: keys for name, keys in sets.items() if keys is not None})


def compile_rego(source: RegoSource) -> bytes:
    """A program of nothing but one Rego policy, to find out whether it is admitted."""
    nobody = {"principal": "spiffe://nobody/", "ports": {}}
    rego = [rego_policy(source)]
    return canonical({"schema": SCHEMA, "workload": nobody, "authentication": [], "rego": rego, "policies": []})


# Tokens ---------------------------------------------------------------------------------------------------------------


def jwt_rules(snapshot: Snapshot, workload: Workload) -> list[tuple[Resource[RequestAuthenticationSpec], int, JwtRule]]:
    """Every rule for tokens sent to `workload`, with its resource and its place there."""
    return [
        (resource, index, rule)
        for resource in snapshot.applying_to(workload, RequestAuthenticationSpec)
        for index, rule in enumerate(resource.spec.jwt_rules)
    ]


def key_set_name(resource: Resource[RequestAuthenticationSpec], index: int) -> str:
    """The name by which a program and its key sets know a rule's keys."""
    return f"{resource.full_name}[{index}]"


def key_set(rule: JwtRule, fetched: Mapping[KeySource, Json]) -> Json | None:
    """The keys of a rule, inline or fetched; none where they were not."""
    if rule.jwks is not None:
        keys: Json = json.loads(rule.jwks)
        return keys
    source = key_source(rule)
    return fetched.get(source) if source is not None else None


def key_source(rule: JwtRule) -> KeySource | None:
    """Where the keys of a rule are fetched from; none where they are inline."""
    return KeySource(rule.issuer, rule.jwks_uri, rule.fetch_timeout) if rule.jwks_uri is not None else None


def authentication(rule: JwtRule, keys: str, *, require: bool) -> Json:
    """One rule for tokens."""
    payload_header = rule.output_payload_to_header
    return {
        "issuer": rule.issuer,
        "audiences": rule.audiences,
        "keys": keys,
        "places": token_places(rule),
        "forward_original_token": rule.forward_original_token,
        "output_payload_to_header": payload_header.lower() if payload_header is not None else None,
        "output_claim_to_headers": [
            {"header": output.header.lower(), "claim": output.claim} for output in rule.output_claim_to_headers
        ],
        "space_delimited_claims": rule.space_delimited_claims,
        "allow_missing_expiry": rule.allow_missing_expiry,
        "require": require,
    }


def token_places(rule: JwtRule) -> list[Json]:
    """Where a rule looks for tokens; where it names no place, Istio's two (RFC 6750 sections 2.1 and 2.3)."""
    headers = [{"header": {"name": header.name.lower(), "prefix": header.prefix}} for header in rule.from_headers]
    parameters = [{"parameter": name} for name in rule.from_params]
    cookies = [{"cookie": name} for name in rule.from_cookies]
    bearer = {"header": {"name": "authorization", "prefix": "Bearer "}}
    return [*headers, *parameters, *cookies] or [bearer, {"parameter": "access_token"}]


# Rego -----------------------------------------------------------------------------------------------------------------


def providers(policies: Iterable[Resource[AuthorizationPolicySpec]]) -> list[str]:
    """The Rego policies that `policies` ask, each once."""
    names = {
        provider_name(resource.namespace, resource.spec.provider.name)
        for resource in policies
        if resource.spec.provider is not None
    }
    return sorted(names)


def rego_policy(source: RegoSource) -> Json:
    """One Rego policy with its modules and the data that they read, those of its bundle among them."""
    spec = source.resource.spec
    return {
        "name": source.resource.full_name,
        "modules": dict(source.all_modules),
        "data": dict(source.needed_data),
        "entrypoint": spec.entrypoint,
        "tier": source.tier.value,
        "on_error": spec.on_error.value,
        "timeout_ms": spec.timeout_in(source.tier) // timedelta(milliseconds=1),
        **({"body": settings} if (settings := body_settings(source)) else {}),
    }


def body_settings(source: RegoSource) -> Json:
    """How a Rego policy reads bodies, but for the defaults."""
    spec = source.resource.spec.include_request_body_in_check
    settings: Json = {}
    if spec.max_request_bytes != DEFAULT_BODY_BYTES:
        settings["limit"] = spec.max_request_bytes
    if spec.allow_partial_message:
        settings["partial"] = True
    if source.descriptors is not None:
        settings["descriptors"] = base64.b64encode(source.descriptors).decode()
    return settings


# Rules ----------------------------------------------------------------------------------------------------------------


def policy(
    resource: Resource[AuthorizationPolicySpec], trust_domains: Sequence[str], service_ports: Sequence[int]
) -> Json:
    """One AuthorizationPolicy; `service_ports` are those that it is for, where it is for services."""
    spec = resource.spec
    scope = Scope(resource.namespace, trust_domains)
    lowered: Json = {
        "name": resource.full_name,
        "action": spec.action.value,
        "rules": [rule(each, scope) for each in spec.rules],
    }
    if spec.action is Action.CUSTOM and spec.provider is not None:
        lowered["provider"] = provider_name(resource.namespace, spec.provider.name)
    if resource.dry_run:
        lowered["dry_run"] = True
    if spec.targets:
        lowered["service_ports"] = list(service_ports)
    return lowered
