"""A resource: one document of a known kind, with its spec parsed to a typed value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from peltast.policies.problems import Problem
from peltast.policies.sources.documents import Document, FieldPath, field_text

__all__ = ["Model", "Resource", "Spec"]


class Model(BaseModel):
    """A part of a spec. Fields are as Kubernetes writes them, unknown ones are refused, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, strict=True)

    refused: ClassVar[dict[str, str]] = {}
    """Fields that Istio knows and Peltast does not take, each with the reason."""


class Spec(Model):
    """The spec of a kind."""

    def problems(self) -> list[tuple[FieldPath, str, str]]:
        """What is wrong beyond the types of single fields: where (below ``spec``), what was given, what is allowed."""
        return []


S = TypeVar("S", bound=Spec, covariant=True)


@dataclass(frozen=True)
class Resource(Generic[S]):
    """One resource. Two are equal when they say the same, wherever they are written."""

    kind: str
    namespace: str
    name: str
    labels: dict[str, str]
    spec: S
    document: Document = field(compare=False, repr=False)
    dry_run: bool = False
    """Whether it is on trial only: evaluated and recorded, not enforced."""

    @property
    def full_name(self) -> str:
        """``namespace/name``, as decisions and records name policies."""
        return f"{self.namespace}/{self.name}"

    def problem(self, path: FieldPath, given: str, allowed: str) -> Problem:
        """A problem at `path` of this resource's document."""
        return Problem(self.document.file, self.document.line(path), field_text(path), given, allowed)
