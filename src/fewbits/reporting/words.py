"""Turns the report's values into words: one text per figure and one sentence per verdict, the same in every medium.

Text here may hold typographic signs (×, −, →); text.fold makes them ASCII. Names from files are cleaned as they enter.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from fewbits.reporting.schema import Metric, Report, reason_for
from fewbits.reporting.text import clean

# Decimals beyond this say nothing about a share of examples: 1e-6 is one example in a million.
_MOST_DECIMALS = 6
_NAME_LIMIT = 60
_UNIT_LIMIT = 16
FLOAT_KEPT = "float kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One value of the report, ready to show.

    Attributes:
      key: Dotted key in report.json.
      value: The value as it stands there; None where unknown.
      text: The value in words with its unit; "unknown" where it is None.
      reason: Why it is None; "" where it is known.
    """

    key: str
    value: object
    text: str
    reason: str

    @property
    def known(self) -> bool:
        """True where there is a value."""
        return self.value is not None


def figure(report: Report, key: str) -> Figure:
    """Returns the value under a dotted key with its text; a key that does not exist is our bug (AttributeError)."""
    value: object = report
    for step in key.split("."):
        value = getattr(value, step)
    assert not isinstance(value, BaseModel), key
    if value is None:
        return Figure(key=key, value=None, text="unknown", reason=clean(reason_for(report, key)))
    return Figure(key=key, value=value, text=in_words(report, key, value), reason="")


def in_words(report: Report, key: str, value: object) -> str:
    """Returns a known value with its unit; the last step of its dotted key says which."""
    last = key.rpartition(".")[2]
    metric = report.metric
    if isinstance(value, bool) or not isinstance(value, int | float):
        return clean(str(value))
    if last in {"drop", "selection_drop"}:
        return loss(metric, value)
    if last == "bound":
        return loss(metric, value, apart=metric.budget)
    if last == "budget":
        return loss(metric, value, budget=True)
    if key in {"metric.float", "metric.quantized"}:
        return share(value, 2) if metric.unit == "points" else f"{value:,.4g}"
    if last == "agreement":
        return share(value, 2)
    if last == "confidence":
        return share(value)
    if last.endswith("bytes") or last == "bytes_moved":
        return size(value)
    if last.endswith("_ms") or last in {"p50", "p90", "p99"}:
        return f"{significant(value)} ms"
    if last in {"ratio", "speedup", "speedup_low", "speedup_high"}:
        return f"{value:.2f}×"
    if last == "sqnr_db":
        return minus(f"{value:.1f} dB")
    if last == "throughput":
        return f"{value:,.0f} per second" if value >= 100 else f"{significant(value)} per second"
    if last in {"macs", "parameters"}:
        return big(value)
    return f"{value:,}" if isinstance(value, int) and key != "seed" else minus(f"{value:.3g}")


def minus(text: str) -> str:
    """Returns text with the typographic minus sign.

    >>> minus("-0.5 dB")
    '−0.5 dB'
    """
    return text.replace("-", "−")


def significant(value: float) -> str:
    """Returns three significant digits without an exponent.

    >>> [significant(x) for x in (0.01234, 1.5, 12.34, 12345.6)]
    ['0.0123', '1.50', '12.3', '12,346']
    """
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = 1 if abs(value) >= 10 else 2
    while decimals < _MOST_DECIMALS and abs(value) < 10.0 ** (2 - decimals):
        decimals += 1
    return f"{value:.{decimals}f}"


def share(value: float, decimals: int | None = None) -> str:
    """Returns a fraction as percent; as short as it can be where no decimals are given.

    >>> share(0.9183, 2), share(0.95), share(0.975)
    ('91.83%', '95%', '97.5%')
    """
    return f"{100 * value:.6g}%" if decimals is None else f"{100 * value:.{decimals}f}%"


def size(value: float) -> str:
    """Returns bytes in decimal units (1 MB = 1,000,000 bytes) with three significant digits.

    >>> [size(x) for x in (999, 1093281, 289_000_000_000)]
    ['999 bytes', '1.09 MB', '289 GB']
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # 999,600 bytes are 1.00 MB, not 1,000 kB.
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor)} {unit}"
    return f"{value:,.0f} bytes"


def big(value: float) -> str:
    """Returns a count in thousands, millions or billions where it is large.

    >>> [big(x) for x in (950, 270_000, 40_810_000, 4.1e9)]
    ['950', '270 thousand', '40.8 million', '4.10 billion']
    """
    for unit, factor in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if abs(value) >= 0.9995 * factor:
            return f"{significant(value / factor)} {unit}"
    return f"{value:,.0f}"


def loss(metric: Metric, value: float, *, apart: float | None = None, budget: bool = False) -> str:
    """Returns a drop, bound or budget with its unit: points, percent of the float metric, or the metric's own unit.

    Args:
      metric: Whose unit counts.
      value: The loss; negative is a gain.
      apart: A figure that the text must not round onto: 1.004 beside a budget of 1 is shown as 1.004, not as 1.00.
      budget: True for a figure that a person typed: it is shown as short as it was.
    """
    scale, unit = _scale(metric)
    shown = scale * value
    if budget:
        number = f"{shown:.6g}"
    else:
        decimals = 2
        other = None if apart is None else scale * apart
        while decimals < _MOST_DECIMALS and _misleads(shown, decimals, other):
            decimals += 1
        number = f"{shown:.{decimals}f}"
        if float(number) == 0:
            number = "0.00"
    if unit == "points" and number in {"1", "-1"}:
        unit = "point"
    return minus(number) + ("%" if unit == "%" else f" {unit}" if unit else "")


def _scale(metric: Metric) -> tuple[float, str]:
    if metric.unit == "points":
        return 100.0, "points"
    if metric.unit == "relative":
        return 100.0, "%"
    return 1.0, clean(metric.unit or "", limit=_UNIT_LIMIT)


def _misleads(shown: float, decimals: int, other: float | None) -> bool:
    rounded = round(shown, decimals)
    if rounded == 0 and shown != 0:
        return True
    return other is not None and shown != other and rounded == round(other, decimals)


def plural(count: float, one: str, many: str) -> str:
    """Returns the count with its noun.

    >>> plural(1, "answer", "answers"), plural(1200, "answer", "answers")
    ('1 answer', '1,200 answers')
    """
    return f"{count:,} {one if count == 1 else many}"


def state(report: Report) -> str:
    """Returns the verdict as the page shows it: the verdict itself, or ``float kept``."""
    return FLOAT_KEPT if report.float_kept else report.verdict


def metric_name(report: Report) -> str:
    """Returns the cleaned name of the metric, or "the metric" where there is none."""
    return clean(report.metric.name or "", limit=_NAME_LIMIT) or "the metric"


def headline(report: Report) -> str:
    """Returns the report's own headline, cleaned, or a sentence made from its figures where it has none."""
    return clean(report.headline) or f"{_verdict_sentence(report)}{_gain_clause(report)}."


def halves_sentence(report: Report, why: str) -> str:
    """Returns the first line where integers are given up and the float model is handed over with 16-bit weights.

    Args:
      report: What was measured.
      why: Why no integers are handed over.
    """
    latency = report.latency
    speed = faster(report)
    if latency.speedup is not None and (not speed or speed.startswith("no clear")):
        speed = "as fast as float"
    gains = ", ".join(text for text in (smaller(report), speed) if text)
    verdict = "" if report.metric.budget is None else f" {_verdict_sentence(report)}."
    return f"16-bit weights: {gains}.{verdict} No integers: {clean(why)}."


def worsens(metric: Metric, drop: float | None) -> str:
    """Returns the measured loss as a predicate: "falls by 0.33 points", "improves by 1%", "does not change"."""
    if drop is None:
        return "changed by an amount that was not measured"
    if drop == 0:
        return "does not change"
    if drop < 0:
        return f"improves by {loss(metric, -drop)}"
    return f"{_verb(metric)} by {loss(metric, drop)}"


def _verb(metric: Metric) -> str:
    return {"higher": "falls", "lower": "rises"}.get(metric.direction or "", "worsens")


def at_most(report: Report) -> str:
    """Returns the bound as a predicate: "falls by at most 0.87 points with 95% confidence"; "" where unknown."""
    metric = report.metric
    if metric.bound is None:
        return ""
    sure = "" if metric.confidence is None else f" with {share(metric.confidence)} confidence"
    if metric.bound < 0:
        return f"improves by at least {loss(metric, -metric.bound)}{sure}"
    return f"{_verb(metric)} by at most {loss(metric, metric.bound, apart=metric.budget)}{sure}"


def _verdict_sentence(report: Report) -> str:
    metric, name = report.metric, metric_name(report)
    budget = figure(report, "metric.budget")
    allowed = f"(budget {budget.text})" if budget.known else "(budget unknown)"
    most = at_most(report) or "stays inside the budget"
    if report.float_kept:
        inside = f" and inside the budget of {budget.text}" if budget.known else ""
        return f"Float model kept: no candidate was better than float{inside}"
    if report.verdict == "met":
        return f"Budget met: {name} {most} {allowed}"
    if metric.drop is None and metric.bound is None:
        label = {"undecided": "Undecided", "not met": "Budget not met"}.get(report.verdict, "No budget was set")
        return f"{label}: the loss of {name} was not measured"
    if report.verdict == "not met":
        return f"Budget not met: {name} {worsens(metric, metric.drop)} {allowed}"
    if report.verdict == "undecided":
        count = "the examples" if metric.examples is None else plural(metric.examples, "example", "examples")
        shown = "an unknown loss" if metric.bound is None else loss(metric, metric.bound, apart=metric.budget)
        needed = metric.examples_needed
        more = "" if needed is None else f"; about {needed:,} examples would decide"
        measured = f"{name} {worsens(metric, metric.drop)}, but {count} cannot rule out {shown}"
        return f"Undecided: {measured} {allowed}{more}"
    tail = f"; it {most}" if metric.bound is not None else ""
    return f"No budget was set: {name} {worsens(metric, metric.drop)} on the verdict data{tail}"


def _gain_clause(report: Report) -> str:
    if report.float_kept:
        return ""
    parts = [text for text in (smaller(report), faster(report)) if text]
    return f"; {', '.join(parts)}" if parts else ""


def smaller(report: Report) -> str:
    """Returns "3.91× smaller", "1.10× larger" or "same size"; "" where unknown."""
    ratio = report.size.ratio
    if ratio is None or ratio <= 0:
        return ""
    if abs(ratio - 1) < 0.005:
        return "same size"
    return f"{ratio:.2f}× smaller" if ratio > 1 else f"{1 / ratio:.2f}× larger"


def lighter(report: Report) -> str:
    """Returns the peak memory against float, "37% less" or "about the same"; "" where one of the two is unknown."""
    float_peak, peak = report.memory.float_peak_bytes, report.memory.peak_bytes
    if not float_peak or peak is None:
        return ""
    percent = round(100 * (1 - peak / float_peak))
    if percent == 0:
        return "about the same"
    return f"{percent}% less" if percent > 0 else f"{-percent}% more"


def faster(report: Report) -> str:
    """Returns "2.11× faster" or "0.77× as fast" where the whole interval agrees, else "no clear change in speed".

    "" where the speedup is unknown.
    """
    latency = report.latency
    ratio = latency.speedup
    if ratio is None or ratio <= 0:
        return ""
    low = ratio if latency.speedup_low is None else latency.speedup_low
    high = ratio if latency.speedup_high is None else latency.speedup_high
    if low > 1:
        return f"{ratio:.2f}× faster"
    return f"{ratio:.2f}× as fast" if high < 1 else "no clear change in speed"


def interval(report: Report) -> str:
    """Returns the speedup's interval, "2.05× to 2.18× with 95% confidence"; "" where unknown."""
    latency = report.latency
    if latency.speedup_low is None or latency.speedup_high is None:
        return ""
    sure = "" if latency.confidence is None else f" with {share(latency.confidence)} confidence"
    return f"{latency.speedup_low:.2f}× to {latency.speedup_high:.2f}×{sure}"
