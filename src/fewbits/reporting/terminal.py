"""Writes the summary that ``fewbits quantize`` prints: the verdict first, then a line per question of a stranger."""

from __future__ import annotations

import textwrap

from fewbits.reporting import words
from fewbits.reporting.schema import Report, reason_for
from fewbits.reporting.text import clean, fold

WIDTH = 100
_MARGIN = 2
_NAME_COLUMN = 10
_MOST_ISLANDS = 3
_NAME_LIMIT = 60


def _accuracy(report: Report) -> str:
    metric = report.metric
    if metric.drop is None:
        return f"unknown: {reason_for(report, 'metric.drop')}"
    both = f"{words.figure(report, 'metric.float').text} → {words.figure(report, 'metric.quantized').text}"
    behind = (
        ""
        if metric.examples is None
        else f" on {words.plural(metric.examples, 'held-out example', 'held-out examples')}"
    )
    change = words.worsens(metric, metric.drop)
    return f"{words.metric_name(report)} {both}, {change}{behind}"


def _bound(report: Report) -> str:
    bound, budget = words.figure(report, "metric.bound"), words.figure(report, "metric.budget")
    if not bound.known:
        return f"unknown: {bound.reason}"
    confidence = report.metric.confidence
    sure = "" if confidence is None else f" with {words.share(confidence)} confidence"
    needed = report.metric.examples_needed
    more = "" if needed is None else f"; about {needed:,} examples would decide"
    allowed = f"budget {budget.text}" if budget.known else "no budget"
    kind = ", asymptotic" if (report.metric.method or "").startswith("asymptotic") else ""
    return f"loss at most {bound.text}{sure}{kind}, {allowed}{more}"


def _flips(report: Report) -> str:
    worse, better = words.figure(report, "flips.harmful"), words.figure(report, "flips.helpful")
    if not worse.known:
        return f"unknown: {worse.reason}"
    return f"{worse.text} became worse, {better.text if better.known else 'none can become'} better"


def _size(report: Report) -> str:
    before, after = words.figure(report, "size.float_bytes"), words.figure(report, "size.quantized_bytes")
    if not after.known:
        return f"unknown: {after.reason}"
    change = words.smaller(report)
    return f"{before.text} → {after.text}{f', {change}' if change else ''}"


def _speed(report: Report) -> str:
    latency = report.latency
    if latency.speedup is None:
        return f"unknown: {reason_for(report, 'latency.speedup')}"
    both = f"{words.figure(report, 'latency.float_ms').text} → {words.figure(report, 'latency.quantized_ms').text}"
    between = f" ({words.interval(report)})" if words.interval(report) else ""
    parts = [] if latency.threads is None else [words.plural(latency.threads, "thread", "threads")]
    parts += [] if latency.batch is None else [f"batch {latency.batch}"]
    parts += [] if latency.isa is None else [clean(latency.isa, limit=_NAME_LIMIT)]
    return f"{both}, {words.faster(report)}{between}{'; ' + ', '.join(parts) if parts else ''}"


def _memory(report: Report) -> str:
    before, after = words.figure(report, "memory.float_peak_bytes"), words.figure(report, "memory.peak_bytes")
    if not after.known:
        return f"unknown: {after.reason}"
    change = words.lighter(report)
    return f"{before.text} → {after.text} at peak{f', {change}' if change else ''}"


def _executed(report: Report) -> str:
    integer, floats = words.figure(report, "executed.integer_nodes"), words.figure(report, "executed.float_nodes")
    if not integer.known:
        return f"unknown: {integer.reason}"
    before, was = report.executed.integer_nodes_before, report.executed.float_nodes_before
    changed = "" if not report.executed.repairs else f" ({before} and {was} before repairs)"
    return f"{integer.text} nodes in integers, {floats.text} in float{changed}"


def _islands(report: Report) -> list[str]:
    left = [island for island in report.executed.islands or () if not island.repaired]
    lines = [
        f"{clean(island.node, limit=_NAME_LIMIT)} ({clean(island.op, limit=_NAME_LIMIT)}): "
        f"{clean(island.why or island.rule)}"
        for island in left[:_MOST_ISLANDS]
    ]
    return lines if len(left) <= _MOST_ISLANDS else [*lines, f"{len(left) - _MOST_ISLANDS} more, see the report"]


def summary_lines(report: Report, *, place: str = "report.html", encoding: str = "utf-8") -> list[str]:
    """Returns the summary, at most 100 characters a line, plain text without colour.

    Args:
      report: What was found.
      place: Where the page lies, as the user should read it; it is cleaned, never wrapped.
      encoding: Of the terminal; signs that it lacks are replaced by ASCII.
    """
    rows = [
        ("accuracy", _accuracy(report)),
        ("bound", _bound(report)),
        ("flips", _flips(report)),
        ("size", _size(report)),
        ("speed", _speed(report)),
        ("memory", _memory(report)),
        ("executed", _executed(report)),
    ]
    rows += [("in float" if i == 0 else "", line) for i, line in enumerate(_islands(report))]
    rows += [("warning", clean(warning)) for warning in report.warnings]
    lines = [*_wrapped(fold(words.headline(report), encoding), ""), ""]
    for name, text in rows:
        lines += _wrapped(fold(text, encoding), f"{'':{_MARGIN}}{name:<{_NAME_COLUMN}}")
    return [*lines, fold(f"{'':{_MARGIN}}{'report':<{_NAME_COLUMN}}{clean(place)}", encoding)]


def _wrapped(text: str, label: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    ) or [label.rstrip()]
