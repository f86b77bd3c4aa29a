"""Writes the README.md of an output folder: a model card that Hugging Face reads and a person understands.

Source of the metadata keys: huggingface/hub-docs, docs/hub/model-cards.md and modelcard.md.
"""

from __future__ import annotations

import json
import re

from fewbits.reporting import words
from fewbits.reporting.schema import Report
from fewbits.reporting.text import clean

# Names under which the Hub knows a metric; others keep their own.
_HUB_METRICS = {"top-1": "accuracy", "perplexity": "perplexity"}
_NAME_LIMIT = 120
_MOST_WARNINGS = 20


def _quoted(text: str) -> str:
    """Returns text as a YAML double-quoted scalar: cleaned text in JSON's quoting, which YAML 1.2 reads alike."""
    return json.dumps(clean(text, limit=_NAME_LIMIT), ensure_ascii=False)


def _escaped(text: str) -> str:
    """Returns cleaned text in which Markdown and HTML read no markup.

    Any ASCII punctuation may be escaped (CommonMark 0.31, section 2.4); escaped here is what opens code, emphasis,
    links, tables, HTML, entities and math, a bare web address (GFM, section 6.9), and a block where the text begins.

    >>> print(_escaped("<b> $x$ | *a* http://h (1)"))
    \\<b\\> \\$x\\$ \\| \\*a\\* http\\://h (1)
    """
    return re.sub(r"([#$&*<>@\[\\\]_`|~]|:(?=//)|^[-+=]|(?<=^www)\.|(?<=\Wwww)\.)", r"\\\1", clean(text))


def _title(report: Report) -> str:
    return clean(report.model.name or "", limit=_NAME_LIMIT).removesuffix(".onnx") or "model"


def _metadata(report: Report) -> list[str]:
    title = _quoted(_title(report))
    lines = [
        "---",
        "# base_model: put the Hub id of the float model here before uploading.",
        f"base_model: {title}",
        *([] if report.float_kept else ["base_model_relation: quantized"]),
        "library_name: onnx",
        "tags:",
        "- onnx",
        *(["- fewbits"] if report.float_kept else ["- fewbits", "- quantized"]),
    ]
    metric = report.metric
    if metric.name is not None and metric.quantized is not None:
        sha = (report.data.sha256 or "unknown")[:12]
        lines += [
            "model-index:",
            f"- name: {title}",
            "  results:",
            "  - task:",
            "      type: other",
            "    dataset:",
            "      type: custom",
            f"      name: {_quoted(f'verdict data, SHA-256 {sha}')}",
            "    metrics:",
            f"    - type: {_quoted(_HUB_METRICS.get(metric.name, metric.name))}",
            f"      name: {_quoted(metric.name)}",
            f"      value: {metric.quantized!r}",
            "      verified: false",
        ]
    return [*lines, "---"]


def _table(report: Report) -> list[str]:
    rows = [
        (
            words.metric_name(report),
            "metric.float",
            "metric.quantized",
            words.worsens(report.metric, report.metric.drop),
        ),
        ("size", "size.float_bytes", "size.quantized_bytes", words.smaller(report)),
        ("time of one run", "latency.float_ms", "latency.quantized_ms", words.faster(report)),
        ("peak memory", "memory.float_peak_bytes", "memory.peak_bytes", words.lighter(report)),
    ]
    column = "this folder (float)" if report.float_kept else "quantized"
    lines = [f"| | float | {column} | change |", "|---|---:|---:|---|"]
    for name, float_key, key, change in rows:
        before, after = words.figure(report, float_key), words.figure(report, key)
        shown = (name, before.text, after.text, change if after.known else after.reason)
        lines.append("| " + " | ".join(_escaped(cell) for cell in shown) + " |")
    return lines


def _conditions(report: Report) -> list[str]:
    latency, metric = report.latency, report.metric
    lines = []
    if (most := words.at_most(report)) and not report.float_kept:
        behind = "" if metric.examples is None else f", from {words.plural(metric.examples, 'example', 'examples')}"
        method = "" if metric.method is None else f" ({clean(metric.method)})"
        lines.append(f"Loss: {words.metric_name(report)} {most}{behind}{method}.")
    flips = report.flips
    if flips.harmful is not None and flips.helpful is not None:
        lines.append(f"Answers that changed: {flips.harmful:,} became worse, {flips.helpful:,} became better.")
    timed = [clean(text) for text in (latency.runtime, latency.isa) if text is not None]
    if latency.threads is not None:
        timed.append(words.plural(latency.threads, "thread", "threads"))
    if latency.batch is not None:
        timed.append(f"batch {latency.batch}")
    if timed and latency.speedup is not None:
        lines.append(f"Timed with {', '.join(timed)}{f'; {words.interval(report)}' if words.interval(report) else ''}.")
    executed = report.executed
    if executed.integer_nodes is not None and executed.float_nodes is not None:
        nodes = f"{executed.integer_nodes:,} nodes in integers, {executed.float_nodes:,} in float"
        lines.append(f"The runtime executes {nodes}.")
    return [f"- {_escaped(line)}" for line in lines]


def _limits(report: Report) -> list[str]:
    lines = [
        "The figures hold for data like the verdict data, with the runtime, session options and processor named here.",
        "An average hides who loses: check the groups that matter to you before you replace the float model.",
        "The licence and the intended use are those of the float model.",
    ]
    if report.verdict == "not met" and not report.float_kept:
        lines.insert(0, "The accuracy budget is not met; this is the best candidate, kept for inspection.")
    if report.verdict == "undecided" and not report.float_kept:
        lines.insert(0, "Whether the accuracy budget is met is undecided: there were too few examples to tell.")
    left = len(report.warnings) - _MOST_WARNINGS
    more = [f"{left} more warnings stand in report.json."] if left > 0 else []
    return [f"- {_escaped(line)}" for line in [*lines, *report.warnings[:_MOST_WARNINGS], *more]]


def _loading(report: Report) -> tuple[str, ...]:
    """Returns the code that runs the file as it was measured."""
    if (report.target or "").partition(":")[0] != "openvino":
        return (
            "import onnxruntime as ort",
            'session = ort.InferenceSession("model.onnx")',
            "outputs = session.run(None, {session.get_inputs()[0].name: batch})",
        )
    rounded = (report.latency.session_options or {}).get("inference_precision_hint") == "bf16"
    precision = "bf16" if rounded else "f32"
    hints = f'{{"INFERENCE_PRECISION_HINT": "{precision}", "PERFORMANCE_HINT": "LATENCY"}}'
    return (
        "import openvino as ov",
        "core = ov.Core()",
        'model = core.read_model("model.onnx")',
        "model.reshape(list(batch.shape))  # fixed shapes, as measured, run up to twice as fast",
        f'outputs = core.compile_model(model, "CPU", {hints})(batch)',
    )


def model_card(report: Report) -> str:
    """Returns README.md: YAML metadata, verdict, figures, how to load, limits. Strangers' strings are inert."""
    parts = [
        *_metadata(report),
        "",
        f"# {_escaped(_title(report))}, {'float' if report.float_kept else 'quantized'} by fewbits",
        "",
        f"**{_escaped(words.headline(report))}**",
        "",
        *_table(report),
        "",
        *_conditions(report),
        "",
        "## Load it",
        "",
        "```python",
        *_loading(report),
        "```",
        "",
        "`report.html` shows the evidence, `plan.json` repeats the result to the same bytes, "
        "`fewbits verify` checks every hash.",
        "",
        "## Limits",
        "",
        *_limits(report),
        "",
    ]
    return "\n".join(parts)
