"""Charts as shapes: where each bar stands. Drawn by the page's template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from peltast.audit.reports.report import Bar, Chart, visible

__all__ = ["Drawing", "drawing"]

WIDTH, LABEL, VALUE = 720, 250, 70
ROW, THICKNESS = 22, 15
HEIGHT, FOOT = 140, 20
MAX_LABEL = 40

_BAD = ("denied", "refused")


@dataclass(frozen=True)
class Shape:
    """A rectangle of a bar."""

    x: float
    y: float
    width: float
    height: float
    tone: str
    says: str


@dataclass(frozen=True)
class Words:
    """A text; `anchor` is which end of it stands at `x`."""

    x: float
    y: float
    anchor: str
    text: str


@dataclass(frozen=True)
class Drawing:
    """A chart, laid out in a box."""

    title: str
    width: int
    height: int
    legend: tuple[tuple[str, str], ...]
    """Each series with its tone."""
    shapes: tuple[Shape, ...]
    words: tuple[Words, ...]


def drawing(chart: Chart) -> Drawing:
    """Lays out `chart`."""
    legend = tuple((name, _tone(name)) for name in chart.series)
    longest = max((sum(bar.parts) for bar in chart.bars), default=0) or 1
    if chart.over_time:
        shapes, words = tuple(_standing(chart, longest)), tuple(_times(chart, longest))
        return Drawing(chart.title, WIDTH, HEIGHT + FOOT, legend, shapes, words)
    height = max(len(chart.bars), 1) * ROW
    return Drawing(chart.title, WIDTH, height, legend, tuple(_lying(chart, longest)), tuple(_names(chart, longest)))


def _tone(series: str) -> str:
    return "bad" if series in _BAD else "good"


def _parts(chart: Chart, bar: Bar) -> Iterator[tuple[str, int, int, str]]:
    """Of each part that is not nothing: its tone, what lies before it, itself, and what it says."""
    before = 0
    for name, number in zip(chart.series, bar.parts, strict=True):
        if number:
            yield _tone(name), before, number, f"{visible(bar.label)}: {number} {name}"
        before += number


def _lying(chart: Chart, longest: int) -> Iterator[Shape]:
    scale = (WIDTH - LABEL - VALUE) / longest
    for place, bar in enumerate(chart.bars):
        for tone, before, number, says in _parts(chart, bar):
            x, width = round(LABEL + before * scale, 2), round(number * scale, 2)
            yield Shape(x, place * ROW + (ROW - THICKNESS) / 2, width, THICKNESS, tone, says)


def _names(chart: Chart, longest: int) -> Iterator[Words]:
    scale = (WIDTH - LABEL - VALUE) / longest
    for place, bar in enumerate(chart.bars):
        middle, number = place * ROW + ROW * 0.68, sum(bar.parts)
        yield Words(LABEL - 8, middle, "end", _shortened(visible(bar.label)))
        yield Words(round(LABEL + number * scale + 6, 2), middle, "start", str(number))


def _standing(chart: Chart, longest: int) -> Iterator[Shape]:
    step, scale = WIDTH / max(len(chart.bars), 1), (HEIGHT - FOOT) / longest
    for place, bar in enumerate(chart.bars):
        for tone, before, number, says in _parts(chart, bar):
            y, height = round(HEIGHT - (before + number) * scale, 2), round(number * scale, 2)
            yield Shape(round(place * step, 2), y, round(step * 0.8, 2), height, tone, says)


def _times(chart: Chart, longest: int) -> Iterator[Words]:
    yield Words(0, FOOT - 8, "start", f"at most {longest}")
    if chart.bars:
        yield Words(0, HEIGHT + FOOT - 5, "start", chart.bars[0].label)
        yield Words(WIDTH, HEIGHT + FOOT - 5, "end", chart.bars[-1].label)


def _shortened(label: str) -> str:
    """The end of a long name tells more than its beginning."""
    return label if len(label) <= MAX_LABEL else f"…{label[-MAX_LABEL:]}"
