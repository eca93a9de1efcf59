"""The kinds that are known, and reading a document as one of them."""

from __future__ import annotations

import difflib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from peltast.policies.kinds.audit import AuditPolicySpec
from peltast.policies.kinds.authorization import AuthorizationPolicySpec
from peltast.policies.kinds.mesh import MeshConfigSpec
from peltast.policies.kinds.peer_authentication import PeerAuthenticationSpec
from peltast.policies.kinds.rate_limit import RateLimitPolicySpec
from peltast.policies.kinds.rego import RegoPolicySpec
from peltast.policies.kinds.request_authentication import RequestAuthenticationSpec
from peltast.policies.kinds.resource import Model, Resource, Spec
from peltast.policies.kinds.workload import ServiceSpec, WorkloadEntrySpec, WorkloadRegistrationSpec
from peltast.policies.problems import InvalidConfiguration, Problem
from peltast.policies.sources.documents import Document, FieldPath, field_text

__all__ = ["KINDS", "explain", "read_resource"]

_SECURITY = ("security.istio.io/v1", "security.istio.io/v1beta1")
_NETWORKING = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
_PELTAST = ("peltast.dev/v1",)

KINDS: dict[str, tuple[tuple[str, ...], type[Spec]]] = {
    "AuditPolicy": (_PELTAST, AuditPolicySpec),
    "AuthorizationPolicy": (_SECURITY, AuthorizationPolicySpec),
    "MeshConfig": (_PELTAST, MeshConfigSpec),
    "PeerAuthentication": (_SECURITY, PeerAuthenticationSpec),
    "RateLimitPolicy": (_PELTAST, RateLimitPolicySpec),
    "RequestAuthentication": (_SECURITY, RequestAuthenticationSpec),
    "RegoPolicy": (_PELTAST, RegoPolicySpec),
    "Service": (("v1",), ServiceSpec),
    "WorkloadEntry": (_NETWORKING, WorkloadEntrySpec),
    "WorkloadRegistration": (_PELTAST, WorkloadRegistrationSpec),
}
"""Every kind with its API versions and the type of its spec."""

_LATER = "it is not there yet"
_REFUSED_KINDS = {
    "EnvoyFilter": "it would change the proxy behind the policies' back",
    "WasmPlugin": "it would run code in the proxy that no policy speaks of",
    **dict.fromkeys(("VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "Sidecar"), _LATER),
    **dict.fromkeys(("WorkloadGroup", "Telemetry"), _LATER),
}
_DRY_RUN = "istio.io/dry-run"
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
"""How Go, and so Istio, writes booleans in an annotation."""


class _Metadata(BaseModel):
    """What is read of an object's metadata; Kubernetes adds much more."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
    namespace: str = Field(default="default", pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


def read_resource(document: Document) -> Resource[Spec]:
    """Reads `document` as a resource of its kind.

    Raises:
        InvalidConfiguration: with everything that is wrong with it.
    """
    value = document.value
    if not isinstance(value, dict):
        allowed = "an object with apiVersion and kind is expected"
        raise InvalidConfiguration([_problem(document, (), "a list or a scalar is given", allowed)])
    kind, spec_type = _known_kind(document, value)
    problems = [
        _problem(document, (name,), "unknown field", _did_you_mean(name, ["metadata", "spec"]))
        for name in value.keys() - {"apiVersion", "kind", "metadata", "spec", "status"}
    ]
    metadata = _validate(document, _Metadata, "metadata", problems)
    spec = _validate(document, spec_type, "spec", problems)
    if metadata is not None and spec is not None and (reason := _dry_run_problem(metadata, spec)) is not None:
        given = f"{metadata.annotations[_DRY_RUN]!r} is given"
        problems.append(_problem(document, ("metadata", "annotations", _DRY_RUN), given, reason))
    if metadata is None or spec is None or problems:
        raise InvalidConfiguration(problems)
    if findings := spec.problems():
        raise InvalidConfiguration(
            _problem(document, ("spec", *at), _short(given, 200), allowed) for at, given, allowed in findings
        )
    return Resource(
        kind, metadata.namespace, metadata.name, metadata.labels, spec, document, dry_run=_is_dry_run(metadata) is True
    )


def _is_dry_run(metadata: _Metadata) -> bool | None:
    """What the annotation says; none where that is no boolean."""
    return _BOOLEANS.get(metadata.annotations.get(_DRY_RUN, "false"))


def _dry_run_problem(metadata: _Metadata, spec: Spec) -> str | None:
    """What is wrong with the annotation: what cannot be tried would be enforced instead."""
    match _is_dry_run(metadata), spec:
        case None, _:
            return '"true" or "false" is expected'
        case True, AuthorizationPolicySpec(action=action) if not action.can_be_tried:
            return f"only ALLOW and DENY policies can be tried; the action is {action}"
        case True, RateLimitPolicySpec():
            return "a RateLimitPolicy on trial says dryRun: true"
        case True, _ if not isinstance(spec, AuthorizationPolicySpec):
            return "only an AuthorizationPolicy can be tried"
    return None


def _known_kind(document: Document, value: dict[str, Any]) -> tuple[str, type[Spec]]:
    kind, version = str(value.get("kind")), value.get("apiVersion")
    if kind in _REFUSED_KINDS:
        raise _refusal(document, "kind", f"{kind} is given", f"{kind} is refused: {_REFUSED_KINDS[kind]}")
    if kind not in KINDS:
        raise _refusal(document, "kind", f"{_short(repr(kind))} is given", _did_you_mean(kind, list(KINDS)))
    versions, spec_type = KINDS[kind]
    if version not in versions:
        allowed = f"{kind} has the API version {' or '.join(versions)}"
        raise _refusal(document, "apiVersion", f"{_short(repr(version))} is given", allowed)
    return kind, spec_type


M = TypeVar("M", bound=BaseModel)


def _validate(document: Document, model: type[M], member: str, problems: list[Problem]) -> M | None:
    """The document's `member` as a `model`; none, and its problems added, where it is no such thing.

    By way of JSON, in which a list is a list also to strict types.
    """
    try:
        return model.model_validate_json(json.dumps(document.value.get(member, {})), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [explain(document, model, detail, (member,)) for detail in details]
        return None


def explain(document: Document, model: type[BaseModel], detail: ErrorDetails, at: FieldPath) -> Problem:
    """What pydantic found wrong with the value at `at` of `document`, which was to be a `model`."""
    path = (*at, *_without_union_tags(document.value, at, detail["loc"]))
    name = str(path[-1])
    if detail["type"] != "extra_forbidden":
        given = json.dumps(detail["input"], default=str)
        if detail["type"] == "missing":
            return _problem(document, path, "nothing is given", "the field is required")
        shown = "a value that is not shown" if _is_secret(path) else _short(given)
        return _problem(document, path, f"{shown} is given", _lower_first(detail["msg"]))
    parent = _model_at(model, detail["loc"][:-1])
    if parent is not None and name in parent.refused:
        return _problem(document, path, "not taken here", parent.refused[name])
    fields = [field.alias or key for key, field in parent.model_fields.items()] if parent is not None else []
    return _problem(document, path, "unknown field", _did_you_mean(name, fields))


def _is_secret(path: FieldPath) -> bool:
    """Whether a key, or what stands where keys should, is at `path`: what signs by HS256 is a secret."""
    return path[1:3] == ("bundle", "signing") and path[-1] not in ("algorithm", "scope", "keyid")


def _without_union_tags(value: Any, at: FieldPath, location: tuple[str | int, ...]) -> FieldPath:
    """Pydantic names the branch of a union in a location; documents have no such member."""
    for part in at:
        value = value.get(part) if isinstance(value, dict) else None
    path: list[str | int] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        inside = isinstance(value, dict | list)
        if inside and (last or _has(value, part)):
            path.append(part)
            value = value[part] if _has(value, part) else None
    return tuple(path)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[Model] | None:
    """The model that `location` leads to from `model`."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        fields = {field.alias or name: field for name, field in current.model_fields.items()}
        if part not in fields:
            continue
        found = _find_model(fields[part].annotation)
        if found is None:
            return None
        current = found
    return current if issubclass(current, Model) else None


def _find_model(annotation: Any) -> type[Model] | None:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _find_model(argument)) is not None:
            return found
    return None


def _did_you_mean(name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    listed = f"known are {', '.join(known)}" if known else "no fields are known here"
    return f"did you mean {near[0]}?" if near else listed


def _problem(document: Document, path: FieldPath, given: str, allowed: str) -> Problem:
    return Problem(document.file, document.line(path), field_text(path), given, allowed)


def _refusal(document: Document, member: str, given: str, allowed: str) -> InvalidConfiguration:
    return InvalidConfiguration([_problem(document, (member,), given, allowed)])


def _short(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
