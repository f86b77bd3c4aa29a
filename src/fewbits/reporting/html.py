"""Renders report.json as one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from fewbits.reporting import words
from fewbits.reporting.schema import Layer, Report, nulls, reason_for
from fewbits.reporting.text import clean

_TEMPLATES = Path(__file__).parent / "templates"
# The axis goes this share of the largest mark beyond it, so that no mark sits on the edge.
_AXIS_MARGIN = 0.12
_LABELS = {
    "met": "Budget met",
    "not met": "Budget not met",
    "undecided": "Undecided",
    "no budget": "No budget was set",
    words.FLOAT_KEPT: "Float model kept",
}
# A table of more rows starts folded; in print it is always open.
_OPEN_ROWS = 24
_WEAKEST = 5
# Bars of signal to quantization noise end here at the latest: 60 dB is a relative error of 0.1 %.
_SQNR_BAR_DB = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Places of the budget drawing's marks, in percent of its width; None where the value is unknown.

    Attributes:
      zero: Where the loss is 0.
      budget: The budget's line.
      drop: The measured loss.
      bound: The upper confidence bound.
    """

    zero: float
    budget: float | None
    drop: float | None
    bound: float | None


def chart(report: Report) -> Chart | None:
    """Returns where the marks of the budget drawing stand, or None where there is nothing to draw."""
    metric = report.metric
    values = [value for value in (metric.budget, metric.drop, metric.bound) if value is not None]
    if report.float_kept or not (metric.drop is not None or metric.bound is not None) or not any(values):
        return None
    low, high = min(0.0, *values), max(0.0, *values)
    margin = _AXIS_MARGIN * (high - low)
    start, end = (low - margin if low < 0 else 0.0), (high + margin if high > 0 else 0.0)

    def place(value: float) -> float:
        # From 1 to 99: the outermost marks keep their full line width.
        return round(1 + 98 * (value - start) / (end - start), 2)

    return Chart(
        zero=place(0.0),
        budget=None if metric.budget is None else place(metric.budget),
        drop=None if metric.drop is None else place(metric.drop),
        bound=None if metric.bound is None else place(metric.bound),
    )


def _schemes(report: Report) -> list[tuple[str, str, int, int]]:
    """Returns (role, scheme, sites, elements), most elements first."""
    sites: Counter[tuple[str, str]] = Counter()
    elements: Counter[tuple[str, str]] = Counter()
    for layer in report.layers:
        key = (layer.role or "unknown", layer.scheme or "unknown")
        sites[key] += 1
        elements[key] += layer.elements or 0
    order = sorted(sites, key=lambda key: (-elements[key], key))
    return [(role, scheme, sites[role, scheme], elements[role, scheme]) for role, scheme in order]


def _weakest(report: Report) -> list[tuple[int, Layer]]:
    """Returns (index, layer) of the sites with the lowest signal to quantization noise, lowest first."""
    known = [(i, layer) for i, layer in enumerate(report.layers) if layer.sqnr_db is not None]
    return sorted(known, key=lambda entry: (entry[1].sqnr_db or 0.0, entry[0]))[:_WEAKEST]


def _sqnr_percent(value: float) -> float:
    return round(100 * min(max(value / _SQNR_BAR_DB, 0.0), 1.0), 1)


def _unknown(report: Report) -> list[tuple[str, list[str]]]:
    """Returns (reason, keys of null values) in order of the first key."""
    groups: dict[str, list[str]] = {}
    for key in nulls(report):
        groups.setdefault(reason_for(report, key), []).append(key)
    return list(groups.items())


def _breakable(name: str | None) -> Markup:
    """Returns a name, cleaned and escaped, that a line may break after its separators."""
    pieces = re.split(r"(?<=[/._:])(?=[^/._:])", clean(name or ""))
    return Markup("<wbr>").join(escape(piece) for piece in pieces)


def _title(report: Report, label: str) -> str:
    """Returns the headline without the verdict's label, which the page shows above it."""
    text = words.headline(report)
    rest = text.removeprefix(f"{label}:").strip()
    return rest[:1].upper() + rest[1:] if rest else text


def _finish(value: object) -> object:
    """Cleans what an expression of the template prints; markup that the template made itself passes."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finish,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cleaned"] = clean
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html.j2")


def render_html(report: Report) -> str:
    """Returns the page. The same report gives the same bytes; every string from a file is inert in it.

    A figure stands in the page as ``<data data-key="size.ratio" value="3.64">``: key and value as in report.json.
    """
    label = _LABELS[words.state(report)]
    return _template().render(
        r=report,
        w=words,
        figure=partial(words.figure, report),
        in_words=partial(words.in_words, report),
        state=words.state(report),
        label=label,
        headline=_title(report, label),
        chart=chart(report),
        schemes=_schemes(report),
        weakest=_weakest(report),
        numbered=list(enumerate(report.layers)),
        sqnr_percent=_sqnr_percent,
        unknown=_unknown(report),
        open_rows=_OPEN_ROWS,
    )
