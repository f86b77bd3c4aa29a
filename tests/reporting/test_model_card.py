from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from markdown_it import MarkdownIt

from fewbits.reporting.model_card import model_card
from fewbits.reporting.schema import Report

yaml = pytest.importorskip("yaml", reason="PyYAML comes with pre-commit")


def _parts(card: str) -> tuple[dict[str, Any], str]:
    start, front, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def test_metadata_are_yaml_with_the_keys_of_the_hub(report: Report) -> None:
    front, _ = _parts(model_card(report))
    assert front["library_name"] == "onnx"
    assert isinstance(front["base_model"], str)
    assert set(front) <= {"base_model", "base_model_relation", "library_name", "tags", "model-index"}
    assert ("base_model_relation" in front) == (not report.float_kept)


def test_metric_of_the_card_is_that_of_the_report(sample: Callable[[str], Report]) -> None:
    front, body = _parts(model_card(sample("met")))
    metric = front["model-index"][0]["results"][0]["metrics"][0]
    assert metric == {"type": "accuracy", "name": "top-1", "value": 0.9158, "verified": False}
    assert "| top-1 | 91.83% | 91.58% | falls by 0.25 points |" in body


def test_a_card_without_a_known_metric_claims_none(sample: Callable[[str], Report]) -> None:
    front, _ = _parts(model_card(sample("unknown")))
    assert "model-index" not in front


@pytest.mark.parametrize(("name", "says"), [("not_met", "is not met"), ("undecided", "is undecided")])
def test_a_card_warns_where_the_budget_is_not_met(sample: Callable[[str], Report], name: str, says: str) -> None:
    _, body = _parts(model_card(sample(name)))
    assert says in body.split("## Limits")[1]


def test_hostile_strings_are_plain_text_in_markdown(sample: Callable[[str], Report]) -> None:
    _, body = _parts(model_card(sample("hostile")))
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    for opening in ("<script", "<img", "<svg", "<a ", 'javascript:alert(3)"'):
        assert opening not in html
    assert "&lt;img src=x onerror=alert(2)&gt;" in html
    assert html.count("<h1>") == 1
    assert html.count("<table>") == 1
    assert html.count("<tr>") == 5


def test_a_hostile_name_cannot_leave_its_yaml_scalar() -> None:
    raw = {"verdict": "met", "model": {"name": 'x"\n---\nlicense: evil\n" !!python: &a *a'}}
    front, _ = _parts(model_card(Report.model_validate(raw)))
    assert "license" not in front
    assert front["base_model"].startswith('x" --- license: evil')
