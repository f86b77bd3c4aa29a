"""One run from model and data to a measured candidate: what ``fewbits quantize`` does, step by step."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from fewbits._base.errors import TargetError, UsageError
from fewbits._version import VERSION
from fewbits.calibration.statistics import Statistics
from fewbits.datasets import open_dataset
from fewbits.datasets.base import Dataset
from fewbits.datasets.checks import check_against_model
from fewbits.evidence import PairedBound, examples_needed, smallest_certifiable_budget
from fewbits.evidence.verdict import Verdict, decide
from fewbits.flow import Progress, check_plan, observe, silent
from fewbits.measurement.benchmark import Performance, measure_performance, quick_speedup
from fewbits.measurement.executed import ExecutedGraph, read_executed
from fewbits.measurement.golden import make_golden
from fewbits.measurement.metrics import resolve_metric
from fewbits.measurement.metrics.base import Metric
from fewbits.measurement.outcome import Outcome, Reference, score_output
from fewbits.measurement.quality import Quality
from fewbits.models.onnx.feeding import model_batches
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.numerics.schemes import SCHEMES
from fewbits.planning.plan import Plan
from fewbits.planning.site import GraphView
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search.building import Candidate, activation_sites, build
from fewbits.search.draft import draft_plan
from fewbits.search.loop import BudgetLoop, Task, Trial, check_effort
from fewbits.search.verdict_data import SHARES, Parts, assign_parts, forecast, loss_bound
from fewbits.targets import Placement, place, resolve_target
from fewbits.targets.base import Target

# Seconds of the latency measurement; the interval narrows with their root.
_LATENCY_SECONDS = {"fast": 2.0, "balanced": 5.0, "best": 10.0}
# Seconds after which it is plain whether a candidate is slower than float.
_QUICK_SECONDS = 1.0
# Nodes named when nothing can be quantized.
_REASONS_SHOWN = 5


def unheard(warning: str) -> None:
    """Takes a warning and tells nobody; it still stands in the report."""


@final
@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; the options of ``fewbits quantize`` under the same names.

    Args:
      model: Path of the float model.
      data: Path, arrays or iterable: calibration, selection and verdict data.
      evaluation: Verdict data of their own (``--eval``).
      metric: Name or ``module:function``; None for the default.
      max_drop: Budget as a fraction; None where none is asked.
      confidence: Of the bound.
      target: ``NAME[:INSTRUCTION_SET]``.
      scheme: Forced scheme; no search.
      plan: Forced plan; no search.
      effort: How much is tried.
      time_budget: Seconds after which the search ends with the best so far.
      seed: Of all randomness.
      labels_key: Name of the labels in an .npz.
      score_output: Output that holds the answer.
      allow_slower: Whether a file slower than float may be handed over.
      jobs: Shards in work at a time.
      threads: Threads of the measured sessions.
      latency_seconds: How long the latency measurement takes; by effort where None.
      progress: Told of each step.
      notice: Told of each warning before the work that it is about.
    """

    model: str
    data: Any
    evaluation: Any = None
    metric: str | None = None
    max_drop: float | None = 0.01
    confidence: float = 0.95
    target: str = "ort-cpu"
    scheme: str | None = None
    plan: Plan | None = None
    effort: str = "balanced"
    time_budget: float | None = None
    seed: int = 0
    labels_key: str = "labels"
    score_output: str | None = None
    allow_slower: bool = False
    jobs: int = 1
    threads: int = 1
    latency_seconds: float | None = None
    progress: Progress = silent
    notice: Callable[[str], None] = unheard

    @property
    def measuring_seconds(self) -> float:
        """How long the latency measurement takes."""
        return _LATENCY_SECONDS[self.effort] if self.latency_seconds is None else self.latency_seconds

    @property
    def searches(self) -> bool:
        """Whether a plan is searched for."""
        return self.scheme is None and self.plan is None


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Everything opened and checked, nothing computed yet.

    Args:
      request: What is asked for; with a plan, its target and seed.
      target: The rules.
      model: The float model.
      placement: What could run in integers.
      metric: How examples are scored for the verdict.
      selection_metric: How they are for the choice: the same, but for selection data without labels.
      output: Name of the output that holds the answer.
      parts: Which example plays which part.
      base: A plan without decisions: seed, split, hashes and versions of this run.
      warnings: What must be known before work starts.
    """

    request: Request
    target: Target
    model: OnnxModel
    placement: Placement
    metric: Metric
    selection_metric: Metric
    output: str
    parts: Parts
    base: Plan
    warnings: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A measured result.

    Args:
      prepared: What was asked and opened.
      candidate: The best candidate, even where the float model is handed over instead.
      data: The file that is handed over.
      float_kept: Whether that is the float model.
      float_reason: Why, in words; None otherwise.
      trail: What the search tried.
      bound: Bound on the loss, on verdict data.
      verdict: None where no budget was asked for.
      outcome_quality: Closeness on the verdict data.
      float_figure: The metric of the float model on the verdict data.
      figure: The same of the handed-over model.
      performance: Latency and memory.
      executed: The executed graph of the handed-over model.
      float_executed: The same of the float model.
      golden: Seeded inputs' outputs, by which the file can be verified later.
      graph: View of the model.
      seconds: How long each stage took.
      warnings: What the reader must know.
    """

    prepared: Prepared
    candidate: Candidate
    data: bytes
    float_kept: bool
    float_reason: str | None
    trail: tuple[Trial, ...]
    bound: PairedBound
    verdict: Verdict | None
    outcome_quality: Quality
    float_figure: float
    figure: float
    performance: Performance
    executed: ExecutedGraph
    float_executed: ExecutedGraph
    golden: bytes
    graph: GraphView
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = field(default=())


def versions() -> dict[str, str]:
    """Returns the versions that the bytes of a result depend on."""
    import numpy
    import onnx
    import onnx_ir
    import onnxruntime

    return {
        "fewbits": VERSION,
        "numpy": numpy.__version__,
        "onnx": onnx.__version__,
        "onnx-ir": onnx_ir.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def prepare(request: Request) -> Prepared:
    """Returns everything opened and checked: each refusal comes before any long work."""
    check_effort(request.effort)
    _check_numbers(request)
    if request.scheme is not None:
        SCHEMES[request.scheme]
    if request.scheme is not None and request.plan is not None:
        raise UsageError("--scheme and --plan exclude each other; the plan already has a scheme a site", slug="options")
    if request.plan is not None:  # a plan is applied as it is, its target and seed too
        request = replace(request, target=request.plan.target, seed=request.plan.seed)
    target = resolve_target(request.target)
    model = open_model(request.model)
    output = score_output(model, request.score_output)
    placement = place(model.view, target)
    if not placement.integer:
        raise TargetError(nothing_to_quantize(model, placement, target), slug="nothing-to-quantize")
    if request.data is None:
        raise UsageError(
            "static int8 needs examples to calibrate and judge on; give --data DATA (an .npz, or a folder of images)",
            slug="data-missing",
        )
    data = _open(request.data, request, model)
    evaluation = None if request.evaluation is None else _open(request.evaluation, request, model)
    judged = data if evaluation is None else evaluation
    metric = resolve_metric(request.metric, labelled=judged.has_labels)
    # Labels that only --eval has judge the result; what is chosen before is then judged by agreement with float.
    blind = metric.needs_labels and not data.has_labels
    selection_metric = resolve_metric("agreement", labelled=False) if blind else metric
    shares = SHARES[request.searches, evaluation is not None]
    if request.plan is not None and request.plan.split:
        shares = request.plan.split
        if evaluation is None and not shares.get("verdict"):
            shares = SHARES[False, False]
    parts = assign_parts(data, evaluation, shares=shares, seed=request.seed)
    base = _base_plan(request, target, model, parts)
    if request.plan is not None:
        check_plan(model, target, request.plan)  # a plan that cannot run is refused before an hour of calibration
    replayed = () if request.plan is None else _replay_notes(request.plan, base, placement)
    return Prepared(
        request=request,
        target=target,
        model=model,
        placement=placement,
        metric=metric,
        selection_metric=selection_metric,
        output=output,
        parts=parts,
        base=base,
        warnings=(*parts.notes, *replayed, *_budget_warnings(request, metric, len(parts.verdict))),
    )


def _check_numbers(request: Request) -> None:
    """Refuses counts that cannot be meant."""
    for name, value, least in (("--seed", request.seed, 0), ("--jobs", request.jobs, 1)):
        if value < least:
            raise UsageError(f"{name} {value} cannot be meant; write at least {least}", slug="options")
    if request.time_budget is not None and not 0 < request.time_budget < float("inf"):
        raise UsageError(
            f"--time-budget {request.time_budget:g} seconds cannot be meant; write 90s, 10m or 1h", slug="options"
        )


def _open(source: Any, request: Request, model: OnnxModel) -> Dataset:
    # A folder of pictures feeds the model's only input, whatever that is called.
    only = model.inputs[0].name if len(model.inputs) == 1 else None
    dataset = open_dataset(source, labels_key=request.labels_key, input_name=only)
    check_against_model(dataset, {spec.name: (np.dtype(spec.dtype), spec.shape) for spec in model.inputs})
    return dataset


def nothing_to_quantize(model: OnnxModel, placement: Placement, target: Target) -> str:
    """Returns why no node of a model can run in integers, the commonest reasons first."""
    by_name = model.view.by_name
    reasons = Counter((by_name[name].label, reason.text) for name, reason in placement.kept_float.items())
    shown = [f"{count} {op}: {text}" for (op, text), count in reasons.most_common(_REASONS_SHOWN)]
    more = len(reasons) - len(shown)
    tail = f"; and {more} more kinds ('fewbits inspect' lists them)" if more > 0 else ""
    return f"nothing in {model.name} can run in integers on {target.full_name}: {'; '.join(shown)}{tail}"


def _budget_warnings(request: Request, metric: Metric, examples: int) -> tuple[str, ...]:
    """Returns what must be said before work starts: a budget that no result could be shown to keep."""
    if request.max_drop is None or metric.bounds != (0.0, 1.0):
        return ()
    smallest = smallest_certifiable_budget(examples, request.confidence)
    if request.max_drop >= smallest:
        return ()
    if request.max_drop <= 0:
        return ("a budget of 0 can be met by no number of examples; the verdict will not be 'met' [budget-too-small]",)
    needed = examples_needed(request.max_drop, request.confidence)
    return (
        f"{examples} verdict examples cannot show a loss below {100 * smallest:.2g} points, even if no answer changes; "
        f"the budget of {100 * request.max_drop:.3g} needs at least {needed} [budget-too-small]",
    )


def run(request: Request) -> Finished:
    """Returns the measured result of a request."""
    prepared = prepare(request)
    for warning in prepared.warnings:
        request.notice(warning)
    return finish(prepared)


def finish(prepared: Prepared) -> Finished:
    """Returns the measured result of what ``prepare`` opened."""
    request, model, target = prepared.request, prepared.model, prepared.target
    clock = _Stages()
    options = Options(threads=request.threads)
    wanted = draft_plan(model, target, base=prepared.base) if request.plan is None else _renewed(prepared, request.plan)
    with clock.stage("calibration"):
        statistics = observe(
            model,
            prepared.parts.data,
            prepared.parts.calibration,
            activation_sites(wanted),
            jobs=request.jobs,
            progress=request.progress,
        )
    with clock.stage("search"):
        candidate, trail, notes = _choose(prepared, wanted, statistics, options)
    candidate = _finalize(prepared, candidate, statistics)
    float_reason = None
    if not candidate.integer:
        asked = request.plan is not None
        float_reason = (
            "the plan keeps every site float" if asked else "no mix of integer and float nodes kept the budget"
        )
    with tempfile.TemporaryDirectory(prefix="fewbits-run-") as folder:
        files = _write(Path(folder), model.original, candidate.data)
        feeds = _one_example(prepared)
        with clock.stage("latency"):
            performance = measure_performance(
                *files, feeds=feeds, options=options, seconds=request.measuring_seconds, seed=request.seed
            )
        if float_reason is None and request.plan is None and not request.allow_slower:
            float_reason = _not_worth_it(performance, files)
            notes = (*notes, *_slower_but_smaller(performance, float_reason))
        if float_reason is not None:
            performance = performance.of_float()
            candidate = replace(candidate, plan=_all_float(candidate.plan, float_reason))
        handed = files[0] if float_reason is not None else files[1]
        with clock.stage("verdict"):
            outcome = _judge(prepared, handed, options)
        executed = read_executed(
            RUNTIMES[target.runtime].executed(handed, options, feeds),
            None if float_reason is not None else _placement_of(prepared, candidate),
            model.view,
        )
        float_executed = read_executed(RUNTIMES[target.runtime].executed(files[0], options, feeds), None)
        golden = make_golden(handed, feeds, options, seed=request.seed)
        data = handed.read_bytes()
    bound = loss_bound(prepared.metric, outcome, confidence=request.confidence, groups=prepared.parts.groups)
    return Finished(
        prepared=prepared,
        candidate=candidate,
        data=data,
        float_kept=float_reason is not None,
        float_reason=float_reason,
        trail=trail,
        bound=bound,
        verdict=None if request.max_drop is None else decide(bound, request.max_drop),
        outcome_quality=outcome.quality,
        float_figure=float(outcome.float_scores.mean()),
        figure=float(outcome.scores.mean()),
        performance=performance,
        executed=executed,
        float_executed=float_executed,
        golden=golden,
        graph=model.view,
        seconds=clock.seconds,
        warnings=(*prepared.warnings, *notes),
    )


@final
class _Stages:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._start = 0.0

    def stage(self, name: str) -> _Stages:
        self._name, self._start = name, time.perf_counter()
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        self.seconds[self._name] = round(time.perf_counter() - self._start, 3)


def _base_plan(request: Request, target: Target, model: OnnxModel, parts: Parts) -> Plan:
    judged = {} if parts.verdict_data is parts.data else {"eval": parts.verdict_data.digest()}
    return Plan(
        target=target.full_name,
        decisions=(),
        seed=request.seed,
        calibration_examples=len(parts.calibration),
        split=dict(parts.shares),
        hashes={"model": model.sha256, "data": parts.data.digest(), **judged},
        versions=versions(),
    )


def _renewed(prepared: Prepared, plan: Plan) -> Plan:
    """Returns a replayed plan with what this run read and used: an output's hashes are those of its own inputs."""
    base = prepared.base
    return replace(
        plan,
        target=base.target,
        calibration_examples=base.calibration_examples,
        split=base.split,
        hashes=base.hashes,
        versions=base.versions,
        transforms=prepared.model.steps,
    )


def _all_float(plan: Plan, reason: str) -> Plan:
    """Returns the plan of the float model: what is handed over is what the plan says, and replaying it gives that."""
    decisions = tuple(
        decision
        if decision.is_float
        else replace(decision, scheme=None, range_rule=None, rounder=None, reason=f"float model kept: {reason}")
        for decision in plan.decisions
    )
    return replace(plan, decisions=decisions, links=())


def _choose(
    prepared: Prepared, wanted: Plan, statistics: Statistics, options: Options
) -> tuple[Candidate, tuple[Trial, ...], tuple[str, ...]]:
    """Returns the candidate, the trail to it, and notes for the reader."""
    request, model, target = prepared.request, prepared.model, prepared.target
    if not request.searches:
        return build(model, wanted, target, statistics), (), ()
    parts = prepared.parts
    deadline = None if request.time_budget is None else time.monotonic() + request.time_budget
    confidence, verdict_examples = request.confidence, len(parts.verdict)
    with Reference(
        model, parts.data, parts.selection, metric=prepared.selection_metric, output=prepared.output, options=options
    ) as reference:
        task = Task(
            model=model,
            target=target,
            base=prepared.base,
            statistics=statistics,
            reference=reference,
            bound=lambda outcome: forecast(
                prepared.selection_metric, outcome, confidence=confidence, verdict_examples=verdict_examples
            ),
            max_drop=request.max_drop,
            certifiable=smallest_certifiable_budget(verdict_examples, confidence),
            effort=request.effort,
            deadline=deadline,
            progress=request.progress,
            hopeless=lambda candidate: _hopeless(prepared, candidate, options),
        )
        result = BudgetLoop(task).run()
    notes = (result.stopped,) if result.stopped else ()
    return result.candidate, result.trail, notes


def _replay_notes(plan: Plan, base: Plan, placement: Placement) -> tuple[str, ...]:
    """Returns what differs between where a plan was made and where it is applied."""
    notes = []
    for kind in ("model", "data"):
        if plan.hashes.get(kind) not in (None, base.hashes[kind]):
            notes.append(f"the plan was made with another {kind}: sites and ranges may not fit [plan-other-{kind}]")
    changed = [name for name, version in base.versions.items() if plan.versions.get(name) not in (None, version)]
    if changed:
        notes.append(f"the plan was made with other versions of {', '.join(changed)}: bytes may differ [plan-versions]")
    listed = {decision.site for decision in plan.decisions}
    missing = [placed.site.name for placed in placement.sites if placed.site.name not in listed]
    if missing:
        notes.append(
            f"the plan does not list {len(missing)} sites that the target could quantize, the first {missing[0]!r}: "
            "they stay float [plan-sites-missing]"
        )
    return tuple(notes)


def _finalize(prepared: Prepared, candidate: Candidate, statistics: Statistics) -> Candidate:
    """Returns the candidate with the metadata that its file carries."""
    metadata = {"fewbits.version": VERSION, "fewbits.target": prepared.target.full_name}
    return build(prepared.model, candidate.plan, prepared.target, statistics, metadata=metadata)


def _write(folder: Path, original: bytes, quantized: bytes) -> tuple[Path, Path]:
    files = folder / "float.onnx", folder / "model.onnx"
    files[0].write_bytes(original)
    files[1].write_bytes(quantized)
    return files


def _one_example(prepared: Prepared) -> dict[str, np.ndarray]:
    feeds, _ = next(iter(model_batches(prepared.model, prepared.parts.data, prepared.parts.calibration[:1], size=1)))
    return feeds


def _hopeless(prepared: Prepared, candidate: Candidate, options: Options) -> str | None:
    """Returns why no mix with float nodes can win: all integers are already slower than float, and may not be."""
    request = prepared.request
    if request.allow_slower:
        return None
    speedup = quick_speedup(
        prepared.model.original,
        candidate.data,
        feeds=_one_example(prepared),
        options=options,
        seconds=_QUICK_SECONDS,
        seed=request.seed,
    )
    if not speedup.slower:
        return None
    return (
        f"all nodes in integers run at {speedup.ratio:.2f}x of float's speed, so no mix with float nodes was tried "
        "[slower-than-float]"
    )


def _not_worth_it(performance: Performance, files: tuple[Path, Path]) -> str | None:
    """Returns why the float model is handed over instead of the quantized one, None where it is not."""
    speedup = performance.speedup
    smaller = files[1].stat().st_size < files[0].stat().st_size
    if speedup.slower:
        return f"the quantized model runs at {speedup.ratio:.2f}x of the float model's speed"
    if not smaller and not speedup.faster:
        return "the quantized model is neither smaller nor faster than the float model"
    return None


def _slower_but_smaller(performance: Performance, float_reason: str | None) -> tuple[str, ...]:
    """Returns what a reader who needs the smaller file more than the faster one should know."""
    ratio = performance.float_bytes / performance.quantized_bytes
    if float_reason is None or ratio <= 1:
        return ()
    return (
        f"the quantized file would be {ratio:.2f}x smaller, at {performance.speedup.ratio:.2f}x of float's speed; "
        "--allow-slower hands it over [smaller-but-slower]",
    )


def _judge(prepared: Prepared, handed: Path, options: Options) -> Outcome:
    parts = prepared.parts
    with Reference(
        prepared.model,
        parts.verdict_data,
        parts.verdict,
        metric=prepared.metric,
        output=prepared.output,
        options=options,
    ) as reference:
        return reference.compare(handed, prepared.request.progress, stage="verdict")


def _placement_of(prepared: Prepared, candidate: Candidate) -> Placement:
    """Returns the placement that a candidate's plan amounts to, for naming its float islands."""
    running = set(candidate.integer)
    kept = tuple(name for name in prepared.placement.integer if name not in running)
    placed = place(prepared.model.view, prepared.target, keep_float=kept)
    return replace(placed, integer=candidate.integer)
