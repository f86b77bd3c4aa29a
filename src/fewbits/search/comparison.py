"""Comparing any two models of the same inputs, example by example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fewbits._base.errors import ModelError, VerificationError
from fewbits.datasets import open_dataset
from fewbits.datasets.base import Dataset
from fewbits.datasets.checks import check_against_model
from fewbits.evidence import PairedBound
from fewbits.evidence.verdict import Verdict, decide
from fewbits.measurement.metrics import resolve_metric
from fewbits.measurement.metrics.base import Metric
from fewbits.measurement.outcome import Outcome, Progress, Reference, score_output
from fewbits.models.onnx.feeding import expected, fed_by
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.models.onnx.randomness import refuse_unsteady
from fewbits.planning.plan import Plan
from fewbits.runtimes.base import Options
from fewbits.search.sessions import session_options
from fewbits.search.verdict_data import assign_parts, distinct, loss_bound
from fewbits.targets import resolve_target


def _open(model: str, data: Any, labels_key: str) -> tuple[OnnxModel, Dataset]:
    opened = open_model(model, to_quantize=False)
    only = opened.inputs[0].name if len(opened.inputs) == 1 else None
    dataset = open_dataset(data, labels_key=labels_key, input_name=only)
    opened = fed_by(opened, dataset)
    check_against_model(dataset, expected(opened))
    return opened, dataset


def compare_models(
    float_model: str,
    quantized: Path,
    *,
    data: Any,
    metric: str | None,
    max_drop: float | None,
    confidence: float,
    labels_key: str,
    score_output: str | None,
    progress: Progress,
    options: Options,
) -> tuple[Outcome, PairedBound, Metric, Verdict | None]:
    """Returns outcome, bound, metric and verdict of the second model against the first, on all examples.

    The second model runs by the options; the first is the float model, and runs in ONNX Runtime.
    """
    model, dataset = _open(float_model, data, labels_key)
    chosen = resolve_metric(metric, labelled=dataset.has_labels)
    indices = np.arange(dataset.count)
    if model.folder is None:
        refuse_unsteady(model, dataset, indices)
    outcome = _outcome(model, quantized, dataset, indices, chosen, score_output, progress, options)
    bound = loss_bound(chosen, outcome, confidence=confidence, groups=dataset.groups)
    return outcome, bound, chosen, None if max_drop is None else decide(bound, max_drop)


def _outcome(
    model: OnnxModel,
    quantized: Path,
    dataset: Dataset,
    indices: np.ndarray,
    metric: Metric,
    wanted: str | None,
    progress: Progress,
    options: Options,
) -> Outcome:
    output = score_output(model, wanted)
    if not quantized.is_file():
        raise ModelError(
            f"cannot read {quantized}: it is no file; give an .onnx file or an output folder", slug="model-unreadable"
        )
    with Reference(model, dataset, indices, metric=metric, output=output, options=options) as reference:
        reference.prepare(progress, stage="float model")
        try:
            return reference.compare(_readable(quantized), progress, stage="second model")
        except ModelError as error:
            raise ModelError(f"{quantized.name}: {error.message}", slug=error.slug) from error


def _readable(file: Path) -> Path | bytes:
    """Returns the file's path, or its bytes where the locale cannot decode the path: the runtime takes no such path."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return file.read_bytes()
    return file


def verdict_figure(
    model: str,
    quantized: Path,
    *,
    data: Any,
    plan: Plan,
    metric: str | None,
    labels_key: str,
    score_output: str | None,
    progress: Progress,
) -> float:
    """Returns the figure of a file on the examples that its verdict was taken on.

    Args:
      model: The float model.
      quantized: The file.
      data: What ``--data`` was; or ``--eval``, where that was given: then all of it is verdict data.
      plan: The file's plan, which knows the split.
      metric: Name of the metric.
      labels_key: Name of the labels in an .npz.
      score_output: Name of the output that holds the answer; the first where None.
      progress: Told of each batch.
    Raises: VerificationError(slug="verify-other-input") if model or data are not those that the verdict was taken on.
    """
    opened, dataset = _open(model, data, labels_key)
    judged = "eval" if "eval" in plan.hashes else "data"
    for kind, found, option in (
        ("model", opened.sha256, "--model"),
        (judged, dataset.digest(), f"--data (what was --{judged})"),
    ):
        if plan.hashes.get(kind) != found:
            raise VerificationError(
                f"{option} has SHA-256 {found[:12]}…, the run had {plan.hashes.get(kind, 'none')[:12]}…: it is another "
                f"{'model' if kind == 'model' else 'data set'}; give the one of the run",
                slug="verify-other-input",
            )
    chosen = resolve_metric(metric, labelled=dataset.has_labels)
    if judged == "data":
        indices = assign_parts(dataset, None, shares=plan.split, seed=plan.seed).verdict
    else:
        indices = distinct(dataset, np.arange(dataset.count))
    options = session_options(resolve_target(plan.target))
    return float(_outcome(opened, quantized, dataset, indices, chosen, score_output, progress, options).scores.mean())
