"""One run from model and data to a measured candidate: what ``fewbits quantize`` does, step by step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import numpy as np

from fewbits._version import VERSION
from fewbits.calibration.statistics import Statistics
from fewbits.evidence import PairedBound, smallest_certifiable_budget
from fewbits.evidence.verdict import Verdict, decide
from fewbits.flow import observe
from fewbits.measurement.benchmark import Performance, measure_performance, quick_speedup
from fewbits.measurement.executed import ExecutedGraph, read_executed
from fewbits.measurement.golden import make_golden
from fewbits.measurement.outcome import Outcome, Reference
from fewbits.measurement.quality import Quality
from fewbits.models.onnx.feeding import model_batches, rows_fed
from fewbits.planning.plan import Plan
from fewbits.planning.site import GraphView, Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options
from fewbits.search.building import Candidate, activation_sites, build
from fewbits.search.draft import draft_plan
from fewbits.search.loop import BudgetLoop, Task, Trial
from fewbits.search.preparing import Prepared, Request, prepare
from fewbits.search.verdict_data import forecast, loss_bound
from fewbits.targets import Placement, place

# Seconds after which it is plain whether a candidate is slower than float.
_QUICK_SECONDS = 1.0


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
                files,
                feeds=feeds,
                batch=rows_fed(model, feeds),
                options=options,
                seconds=request.measuring_seconds,
                seed=request.seed,
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
    groups = None if parts.data.groups is None else parts.data.groups[parts.selection]
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
                prepared.selection_metric,
                outcome,
                confidence=confidence,
                verdict_examples=verdict_examples,
                groups=None if groups is None else groups[: len(outcome.scores)],
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
    # The plan's own words for what it keeps float, not the placer's.
    told = {d.node: d.reason for d in candidate.plan.decisions if d.is_float and d.role is Role.WEIGHT and d.reason}
    reasons = {
        name: replace(reason, text=told[name]) if name in kept and name in told else reason
        for name, reason in placed.kept_float.items()
    }
    return replace(placed, integer=candidate.integer, kept_float=reasons)
