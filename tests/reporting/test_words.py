from __future__ import annotations

from collections.abc import Callable

import pytest

from fewbits.reporting import words
from fewbits.reporting.schema import Latency, Metric, Report, Size


def _report(verdict: str = "met", **metric: object) -> Report:
    points = {"name": "top-1", "direction": "higher", "unit": "points", "confidence": 0.95}
    return Report.model_validate({"verdict": verdict, "metric": points | metric})


@pytest.mark.parametrize(
    ("verdict", "start"),
    [
        ("met", "Budget met:"),
        ("not_met", "Budget not met:"),
        ("undecided", "Undecided:"),
        ("no_budget", "No budget was set:"),
        ("float_kept", "Float model kept:"),
        ("unknown", "Undecided:"),
    ],
)
def test_headline_begins_with_the_verdict_and_is_one_sentence(
    sample: Callable[[str], Report], verdict: str, start: str
) -> None:
    text = words.headline(sample(verdict))
    assert text.startswith(start)
    assert text.endswith(".")
    assert "\n" not in text


def test_the_lead_sentence_of_the_report_wins_over_the_made_one() -> None:
    assert words.headline(Report(verdict="met", headline="All is well.\x1b[31m")) == "All is well."


def test_headline_of_undecided_names_the_examples_that_would_decide(sample: Callable[[str], Report]) -> None:
    assert "about 1,900 examples would decide" in words.headline(sample("undecided"))


@pytest.mark.parametrize(
    ("bound", "budget"), [(0.010004, 0.01), (0.009996, 0.01), (0.0100001, 0.01), (0.00504, 0.005), (0.0, 0.01)]
)
def test_rounding_never_moves_a_bound_onto_its_budget(bound: float, budget: float) -> None:
    report = _report(bound=bound, budget=budget)
    shown = float(words.figure(report, "metric.bound").text.split()[0])
    allowed = float(words.figure(report, "metric.budget").text.split()[0])
    assert (shown > allowed) == (bound > budget)
    assert (shown < allowed) == (bound < budget)


@pytest.mark.parametrize(
    ("unit", "drop", "text"),
    [
        ("points", 0.0033, "0.33 points"),
        ("points", 0.01, "1.00 points"),
        ("points", -0.002, "−0.20 points"),
        ("points", 0.0, "0.00 points"),
        ("points", -1e-12, "0.00 points"),
        ("points", 0.000012, "0.001 points"),
        ("relative", 0.012, "1.20%"),
        ("mAP", 0.4, "0.40 mAP"),
        (None, 0.4, "0.40"),
    ],
)
def test_a_loss_is_shown_in_its_unit(unit: str | None, drop: float, text: str) -> None:
    assert words.loss(Metric(unit=unit), drop) == text


@pytest.mark.parametrize(
    ("direction", "drop", "text"),
    [
        ("higher", 0.01, "falls by 1.00 points"),
        ("lower", 0.01, "rises by 1.00 points"),
        ("lower", -0.01, "improves by 1.00 points"),
        (None, 0.01, "worsens by 1.00 points"),
        ("higher", 0.0, "does not change"),
    ],
)
def test_a_loss_is_told_in_the_direction_of_the_metric(direction: str | None, drop: float, text: str) -> None:
    metric = Metric.model_validate({"direction": direction, "unit": "points"})
    assert words.worsens(metric, drop) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(1.01, 1.3, "1.20× faster"), (0.98, 1.3, "no clear change in speed"), (None, None, "1.20× faster")],
)
def test_faster_is_said_only_where_the_whole_interval_says_so(low: float | None, high: float | None, text: str) -> None:
    report = Report(verdict="met", latency=Latency(speedup=1.2, speedup_low=low, speedup_high=high))
    assert words.faster(report) == text


def test_a_slower_or_larger_model_is_called_so() -> None:
    slow = Latency(speedup=0.5, speedup_low=0.4, speedup_high=0.6)
    report = Report(verdict="met", latency=slow, size=Size(ratio=0.5))
    assert words.faster(report) == "0.50× as fast"
    assert words.smaller(report) == "2.00× larger"
    assert words.smaller(Report(verdict="met")) == ""


def test_a_figure_that_is_unknown_carries_its_reason() -> None:
    report = Report(verdict="no budget")
    found = words.figure(report, "metric.budget")
    assert (found.known, found.text, found.reason) == (False, "unknown", "no budget was asked for")


def test_a_key_that_does_not_exist_is_our_bug() -> None:
    with pytest.raises(AttributeError):
        words.figure(Report(verdict="met"), "size.nonsense")
