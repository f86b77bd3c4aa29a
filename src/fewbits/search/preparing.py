"""A request, checked and opened: every refusal comes before any long work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from fewbits._base.errors import ModelError, TargetError, UsageError
from fewbits._version import VERSION
from fewbits.datasets import open_dataset
from fewbits.datasets.base import Dataset
from fewbits.datasets.checks import check_against_model
from fewbits.evidence import examples_needed, smallest_certifiable_budget
from fewbits.flow import Progress, check_plan, silent
from fewbits.measurement.metrics import resolve_metric
from fewbits.measurement.metrics.base import Metric
from fewbits.measurement.outcome import score_output
from fewbits.models.onnx.feeding import expected, fed_by, fixed_batch
from fewbits.models.onnx.model import OnnxModel
from fewbits.models.onnx.opening import open_model
from fewbits.models.onnx.randomness import refuse_unsteady
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.scheme import Scheme
from fewbits.numerics.schemes import SCHEMES
from fewbits.planning.plan import Plan
from fewbits.runtimes import RUNTIMES
from fewbits.search.costs import CostTable, check_costs
from fewbits.search.loop import check_effort
from fewbits.search.verdict_data import SHARES, WEIGHTS_ONLY, Parts, assign_parts, shares_unranged
from fewbits.targets import (
    Placement,
    not_written,
    place_dynamic,
    place_forms,
    place_stored,
    refuse_none_in_blocks,
    resolve_target,
    stored_scheme,
)
from fewbits.targets.base import Target

# Seconds of the latency measurement; the interval narrows with their root.
_LATENCY_SECONDS = {"fast": 2.0, "balanced": 5.0, "best": 10.0}
# Nodes named when nothing can be quantized.
_REASONS_SHOWN = 5
# The scheme that holds any weight in codes and computes in float.
_STORED = "w8a16"


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
      max_memory: Bytes that the run may take; what the machine has free where None.
      scratch: Where large tensors are written while the run goes; a temporary folder where None.
      threads: Threads of the measured sessions.
      costs: What patterns of layers cost, and the form of each, from an earlier run; measured anew where None.
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
    max_memory: int | None = None
    scratch: Path | None = None
    threads: int = 1
    costs: CostTable | None = None
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

    @property
    def dynamic_only(self) -> bool:
        """Whether inputs are quantized as they come and in no other way: then there is nothing to calibrate."""
        if self.plan is not None:
            return any(d.dynamic for d in self.plan.quantized) and not any(d.is_static for d in self.plan.quantized)
        return self.scheme is not None and SCHEMES[self.scheme].dynamic

    @property
    def calibrates(self) -> bool:
        """Whether ranges are fixed from examples."""
        if self.plan is not None and not self.plan.quantized:
            return False
        return not self.weights_only and not self.dynamic_only

    @property
    def weights_only(self) -> bool:
        """Whether nothing but weights is quantized: then there is nothing to calibrate, and no data are needed."""
        if self.plan is not None:
            return bool(self.plan.quantized) and all(d.stored for d in self.plan.quantized)
        return self.scheme is not None and SCHEMES[self.scheme].weights_only


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
      parts: Which example plays which part; None without data.
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
    parts: Parts | None
    base: Plan
    warnings: tuple[str, ...]


def versions(target: Target) -> dict[str, str]:
    """Returns the versions that the bytes of a result depend on, or its answers where it runs."""
    import numpy
    import onnx
    import onnx_ir
    import onnxruntime

    name, _, version = RUNTIMES[target.runtime].name.partition(" ")
    return {
        "fewbits": VERSION,
        "numpy": numpy.__version__,
        "onnx": onnx.__version__,
        "onnx-ir": onnx_ir.__version__,
        "onnxruntime": onnxruntime.__version__,
        name: version,
    }


def wanted_scheme(request: Request, target: Target) -> Scheme | None:
    """Returns how a forced scheme, or a plan of 16-bit floats, stores weights alone; None without such a scheme.

    Raises: TargetError(slug="scheme-not-written") for a forced scheme that the target does not write.
    """
    if request.scheme is None:
        return _halves_of(request.plan)
    found = stored_scheme(request.scheme, SCHEMES[request.scheme], target)
    if found is None and request.scheme not in target.schemes:
        raise not_written(request.scheme, target)
    return found


def _halves_of(plan: Plan | None) -> Scheme | None:
    """Returns the scheme of a plan whose weights are all 16-bit floats; None for others."""
    schemes = () if plan is None else tuple(d.scheme for d in plan.quantized if d.scheme is not None)
    return next(iter(schemes), None) if all(not scheme.scaled for scheme in schemes) else None


def asked_placement(request: Request, model: OnnxModel, target: Target, wanted: Scheme | None) -> Placement:
    """Returns where a request wants codes; in a search, where the target could have them."""
    if request.weights_only:
        return place_stored(model.view, target, wanted)
    return place_dynamic(model.view, target) if request.dynamic_only else place_forms(model.view, target)


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
    if target.by_scheme and request.scheme is not None and request.scheme in target.variants:
        target = target.for_instruction_set(request.scheme)
    wanted = wanted_scheme(request, target)
    if request.costs is not None:
        _check_costs(request, request.costs, target)
    model = open_model(request.model, max_memory=request.max_memory)
    if model.unrunnable:
        raise ModelError(
            f"{model.name}: {model.unrunnable}; 'fewbits inspect' names its operators, but what cannot be run cannot "
            "be measured",
            slug="runtime-refuses",
        )
    if request.plan is not None:
        from fewbits.models.onnx.repairs import repeated

        model = repeated(model, request.plan.transforms)
    output = score_output(model, request.score_output)
    calibrates = request.calibrates
    placement = asked_placement(request, model, target, wanted)
    refuse_none_in_blocks(placement, wanted, target)
    if not placement.sites and (request.plan is None or request.plan.quantized):
        raise TargetError(nothing_to_quantize(model, placement, target), slug="nothing-to-quantize")
    if request.data is None and not calibrates and request.max_drop is None and request.evaluation is None:
        return _without_data(request, target, model, placement, output)
    if request.data is None:
        raise UsageError(
            (
                "a budget needs examples to judge on"
                if not calibrates
                else "static int8 needs examples to calibrate and judge on"
            )
            + "; give --data DATA (an .npz, or a folder of images)",
            slug="data-missing",
        )
    model, data = _open(request.data, request, model)
    evaluation = None if request.evaluation is None else _open(request.evaluation, request, model)[1]
    judged = data if evaluation is None else evaluation
    metric = resolve_metric(request.metric, labelled=judged.has_labels)
    # Labels that only --eval has judge the result; what is chosen before is then judged by agreement with float.
    blind = metric.needs_labels and not data.has_labels
    selection_metric = resolve_metric("agreement", labelled=False) if blind else metric
    shares = SHARES[request.searches, evaluation is not None]
    blocks = [] if wanted is None else [wanted]
    if request.plan is not None:
        blocks = [d.scheme for d in request.plan.quantized if d.scheme is not None and d.stored]
    in_blocks = any(isinstance(scheme.granularity, PerGroup) for scheme in blocks)
    recorded = {} if request.plan is None else request.plan.split
    if recorded and (evaluation is not None or recorded.get("verdict")):
        shares = recorded
    elif not calibrates and evaluation is None and not in_blocks:
        shares = shares_unranged(data) if request.dynamic_only else WEIGHTS_ONLY
    parts = assign_parts(data, evaluation, shares=shares, seed=request.seed)
    if model.folder is None:
        refuse_unsteady(model, parts.verdict_data, parts.verdict)
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


def _without_data(request: Request, target: Target, model: OnnxModel, placement: Placement, output: str) -> Prepared:
    """Returns what is prepared where only weights are quantized, and no budget asks for a proof."""
    metric = resolve_metric(None, labelled=False)
    try:
        fixed_batch(model)
    except ModelError:  # no data tell which inputs have an axis of examples; one run is one example
        model = replace(model, single=frozenset(spec.name for spec in model.inputs))
    base = Plan(
        target=target.full_name,
        decisions=(),
        seed=request.seed,
        hashes={"model": model.sha256},
        versions=versions(target),
    )
    if request.plan is not None:
        check_plan(model, target, request.plan)
    return Prepared(
        request=request,
        target=target,
        model=model,
        placement=placement,
        metric=metric,
        selection_metric=metric,
        output=output,
        parts=None,
        base=base,
        warnings=() if request.plan is None else _replay_notes(request.plan, base, placement),
    )


def _check_costs(request: Request, costs: CostTable, target: Target) -> None:
    """Refuses a cost table that would not be used, or that was measured elsewhere."""
    if not request.searches or request.target == "auto":
        raise UsageError(
            "--costs tells a search which form each layer has, and there is no search with --scheme or --plan, and one "
            "for each target with auto; leave one of them out",
            slug="options",
        )
    check_costs(costs, runtime=RUNTIMES[target.runtime].name, target=target.full_name, threads=request.threads)


def _check_numbers(request: Request) -> None:
    """Refuses counts that cannot be meant."""
    for name, value, least in (("--seed", request.seed, 0), ("--jobs", request.jobs, 1)):
        if value < least:
            raise UsageError(f"{name} {value} cannot be meant; write at least {least}", slug="options")
    if request.time_budget is not None and not 0 < request.time_budget < float("inf"):
        raise UsageError(
            f"--time-budget {request.time_budget:g} seconds cannot be meant; write 90s, 10m or 1h", slug="options"
        )


def _open(source: Any, request: Request, model: OnnxModel) -> tuple[OnnxModel, Dataset]:
    """Returns the data, and the model that knows how it is fed with them."""
    # A folder of pictures feeds the model's only input, whatever that is called.
    only = model.inputs[0].name if len(model.inputs) == 1 else None
    dataset = open_dataset(source, labels_key=request.labels_key, input_name=only)
    model = fed_by(model, dataset)
    check_against_model(dataset, expected(model))
    return model, dataset


def nothing_to_quantize(model: OnnxModel, placement: Placement, target: Target) -> str:
    """Returns why no node of a model can run in integers, the commonest reasons first."""
    by_name = model.view.by_name
    kinds = {name: (by_name[name].label, reason.text) for name, reason in placement.kept_float.items()}
    first = {kind: name for name, kind in reversed(kinds.items())}
    reasons = Counter(kinds.values())
    shown = [
        f"{count} {op} ({first[op, text]!r}{', …' if count > 1 else ''}): {text}"
        for (op, text), count in reasons.most_common(_REASONS_SHOWN)
    ]
    more = len(reasons) - len(shown)
    tail = f"; and {more} more kinds ('fewbits inspect' lists them)" if more > 0 else ""
    return (
        f"nothing in {model.name} can run in integers on {target.full_name}: {'; '.join(shown)}{tail}"
        f"{_nearest_stored(model, target)}"
    )


def _nearest_stored(model: OnnxModel, target: Target) -> str:
    """Returns the scheme that the target can write of such a model, in words; nothing where there is none."""
    weights = len(place_stored(model.view, target).sites) if _STORED in target.schemes else 0
    return f"; the nearest that it can hold is --scheme {_STORED}, for {weights} weights" if weights else ""


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


def _base_plan(request: Request, target: Target, model: OnnxModel, parts: Parts) -> Plan:
    judged = {} if parts.verdict_data is parts.data else {"eval": parts.verdict_data.digest()}
    return Plan(
        target=target.full_name,
        decisions=(),
        seed=request.seed,
        calibration_examples=len(parts.calibration),
        split=dict(parts.shares),
        hashes={"model": model.sha256, "data": parts.data.digest(), **judged},
        versions=versions(target),
    )


def _replay_notes(plan: Plan, base: Plan, placement: Placement) -> tuple[str, ...]:
    """Returns what differs between where a plan was made and where it is applied."""
    notes = []
    for kind in ("model", "data"):
        if plan.hashes.get(kind) not in (None, base.hashes.get(kind, plan.hashes.get(kind))):
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
