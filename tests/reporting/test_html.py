from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import fewbits.reporting
from fewbits.reporting.html import chart, render_html
from fewbits.reporting.schema import Metric, Report, nulls, reason_for, to_json
from fewbits.reporting.text import clean

CSS = (Path(fewbits.reporting.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
VOID = {"meta", "link", "wbr", "br"}
CLOSED = {"rect", "path", "circle", "line"}


class Page(HTMLParser):
    """The elements of a page: (tag, attributes, text inside), in document order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert not self._open, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in CLOSED
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for index in self._open:
            self.elements[index][2].append(data)

    def text(self) -> str:
        return "".join(self.elements[[tag for tag, _, _ in self.elements].index("body")][2])


def _at(raw: Any, key: str) -> Any:
    for step in key.split("."):
        raw = raw[int(step)] if isinstance(raw, list) else raw[step]
    return raw


def _leaves(raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in raw.items():
        if isinstance(value, dict) and name not in {"mac_bits", "session_options", "by_dtype", "kernels", "versions"}:
            found |= _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, dict | list):
            found[prefix + name] = value
    return found


def test_page_has_only_the_elements_that_we_draw(sample: Callable[[str], Report]) -> None:
    ours = {(tag, name) for tag, attrs, _ in Page(render_html(sample("met"))).elements for name in [*attrs, ""]}
    theirs = {(tag, name) for tag, attrs, _ in Page(render_html(sample("hostile"))).elements for name in [*attrs, ""]}
    # The hostile report has warnings and a dash for a metric that met has not; nothing else may differ.
    assert theirs - ours <= {("ul", ""), ("li", "")}


def test_hostile_strings_stand_in_the_page_as_plain_text(
    sample: Callable[[str], Report], hostile_strings: tuple[str, ...]
) -> None:
    html = render_html(sample("hostile"))
    text = Page(html).text()
    for raw in hostile_strings:
        assert clean(raw) in text, raw
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    html.encode("utf-8")


def test_page_runs_nothing_and_loads_nothing(report: Report) -> None:
    html = render_html(report)
    page = Page(html)
    for tag, attrs, _ in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "form", "base", "img"}
        assert not [name for name in attrs if name.startswith("on") or name in {"src", "srcset", "style", "action"}]
        target = attrs.get("href", "#")
        assert target == "data:," if tag == "link" else target.startswith("#")
    style = next("".join(text) for tag, _, text in page.elements if tag == "style")
    assert style.strip() == CSS.strip()
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for t, a, _ in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_links_inside_the_page_have_their_target(report: Report) -> None:
    page = Page(render_html(report))
    ids = [attrs["id"] for _, attrs, _ in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    wanted = {attrs["href"][1:] for tag, attrs, _ in page.elements if tag == "a"}
    wanted |= {attrs["aria-labelledby"] for _, attrs, _ in page.elements if "aria-labelledby" in attrs}
    assert wanted <= set(ids)


def test_figures_of_the_page_are_those_of_report_json(report: Report) -> None:
    raw = json.loads(to_json(report))
    for tag, attrs, _ in Page(render_html(report)).elements:
        if tag != "data":
            continue
        stored = _at(raw, attrs["data-key"])
        if isinstance(stored, dict):
            assert int(attrs["value"]) in stored.values()
        elif isinstance(stored, str):
            assert attrs["value"] == clean(stored)
        else:
            assert float(attrs["value"]) == stored, attrs["data-key"]


@pytest.mark.parametrize("name", ["met", "not_met", "undecided", "no_budget", "float_kept"])
def test_shown_numbers_are_the_stored_ones_rounded(sample: Callable[[str], Report], name: str) -> None:
    scales = {"%": 100.0, "points": 100.0, "point": 100.0, "kB": 1e-3, "MB": 1e-6, "million": 1e-6, "thousand": 1e-3}
    checked = 0
    for tag, attrs, inside in Page(render_html(sample(name))).elements:
        shown = re.fullmatch(r"(−?[\d,]+)(\.\d+)? ?(.*)", "".join(inside)) if tag == "data" else None
        if shown is None or attrs["data-key"].startswith(("model.sha", "data.sha")):
            continue
        number = float((shown[1] + (shown[2] or "")).replace("−", "-").replace(",", ""))
        # Half a unit of the last digit that is shown, and room for binary fractions.
        half = 0.5 * 10.0 ** -len((shown[2] or ".")[1:]) + 1e-9
        assert abs(number - float(attrs["value"]) * scales.get(shown[3], 1.0)) <= half, attrs
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("name", ["met", "undecided", "no_budget"])
def test_page_shows_every_value_of_the_report(sample: Callable[[str], Report], name: str) -> None:
    report = sample(name)
    shown = {attrs["data-key"] for tag, attrs, _ in Page(render_html(report)).elements if tag == "data"}
    leaves = _leaves(json.loads(to_json(report)))
    told_otherwise = {"schema_version", "headline", "verdict", "float_kept"}
    known = {key for key, value in leaves.items() if value is not None and not key.startswith("reasons.")}
    assert known - told_otherwise <= shown


def test_every_null_shows_its_reason(report: Report) -> None:
    page = Page(render_html(report))
    rows = ["".join(text) for tag, _, text in page.elements if tag == "tr"]
    marked = {attrs["data-null"] for _, attrs, _ in page.elements if "data-null" in attrs}
    assert marked == set(nulls(report))
    for key in nulls(report):
        reason = clean(reason_for(report, key))
        assert any(reason in row and re.search(rf"\b{re.escape(key)}\b", row) for row in rows), key


def test_verdict_is_told_in_the_first_heading(report: Report) -> None:
    page = Page(render_html(report))
    first = next("".join(text) for tag, _, text in page.elements if tag == "h1")
    labels = {"met": "Budget met", "not met": "Budget not met", "undecided": "Undecided", "no budget": "No budget"}
    assert first.strip().startswith("Float model kept" if report.float_kept else labels[report.verdict])


def test_page_can_be_read_by_a_screen_reader(report: Report) -> None:
    page = Page(render_html(report))
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for tag, attrs, text in page.elements:
        if tag == "th":
            assert attrs.get("scope") in {"row", "col"}
            assert "".join(text).strip()
        if tag == "svg":
            named = attrs.get("role") == "img" and ("aria-label" in attrs or "aria-labelledby" in attrs)
            assert named or attrs.get("aria-hidden") == "true"
    assert next(attrs for tag, attrs, _ in page.elements if tag == "html")["lang"] == "en"


def test_marks_of_the_drawing_stand_in_the_order_of_their_values() -> None:
    def marks(**metric: float) -> list[float | None]:
        drawn = chart(Report(verdict="met", metric=Metric.model_validate(metric)))
        assert drawn is not None
        return [drawn.zero, drawn.drop, drawn.bound, drawn.budget]

    for values in ({"drop": 0.002, "bound": 0.008, "budget": 0.01}, {"drop": -0.02, "bound": -0.01, "budget": 0.0}):
        found = marks(**values)
        numbers = [0.0, values["drop"], values["bound"], values["budget"]]
        places = [place for place in found if place is not None]
        assert len(places) == 4
        assert all(1 <= place <= 99 for place in places)
        for a, value_a in zip(places, numbers, strict=True):
            for b, value_b in zip(places, numbers, strict=True):
                assert (a < b) == (value_a < value_b)


def test_nothing_is_drawn_where_nothing_is_known(sample: Callable[[str], Report]) -> None:
    assert chart(sample("unknown")) is None
    assert chart(sample("float_kept")) is None
    assert chart(Report(verdict="met", metric=Metric(drop=0.0, bound=0.0, budget=0.0))) is None


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _contrast(a: str, b: str) -> float:
    light, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_the_contrast_that_wcag_asks_for() -> None:
    light, dark = CSS.split("@media screen and (prefers-color-scheme: dark)", 1)
    for theme in (light, dark.split("* { box-sizing", 1)[0]):
        blocks = [
            dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block)) for block in re.findall(r"\{([^{}]*)\}", theme)
        ]
        base, *verdicts = [block for block in blocks if "accent" in block]
        assert len(verdicts) == 4
        for colours in (base, *(base | verdict for verdict in verdicts)):
            for text in ("ink", "dim", "accent"):
                for ground in ("paper", "soft", "tint"):
                    # WCAG 2.2, success criterion 1.4.3: 4.5 for text.
                    assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground, colours)
