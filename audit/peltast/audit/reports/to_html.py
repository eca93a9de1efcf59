"""A report as one HTML page that needs nothing else: no script, no request."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from datetime import datetime
from functools import cache

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from peltast.audit.reports.charts import drawing
from peltast.audit.reports.report import Cell, Report, Type, time_text, visible

__all__ = ["to_html"]

_FOLDER = importlib.resources.files("peltast.audit.reports")


def to_html(report: Report) -> bytes:
    """The page of `report`. All of it is escaped; its policy (CSP) lets nothing run or load but the style."""
    style = _style()
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    charts = [drawing(chart) for chart in report.charts]
    page = _page().render(report=report, charts=charts, style=Markup(style), style_hash=style_hash)  # noqa: S704 - ours
    return page.encode()


@cache
def _style() -> str:
    return (_FOLDER / "page.css").read_text()


@cache
def _page() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(time=time_text, visible=visible, cell=_cell, zip=_pairs)
    return environment.from_string((_FOLDER / "page.html").read_text())


def _cell(cell: Cell, column: Type) -> str:
    return time_text(cell) if isinstance(cell, datetime) else visible(str(cell), lines=column is Type.LINES)


def _pairs(columns: tuple[object, ...], cells: tuple[object, ...]) -> list[tuple[object, object]]:
    return list(zip(columns, cells, strict=True))
