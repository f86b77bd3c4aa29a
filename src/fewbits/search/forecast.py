"""The forecast of a run: what would be done, and what it would take, before any long work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

from fewbits._base.errors import TargetError
from fewbits.evidence import examples_needed, smallest_certifiable_budget
from fewbits.flow import observe
from fewbits.models.onnx.feeding import shard_size
from fewbits.models.onnx.opening import open_model
from fewbits.numerics.granularity import PerGroup
from fewbits.planning.plan import Decision, Plan
from fewbits.planning.site import Role, TensorView
from fewbits.search.building import activation_sites
from fewbits.search.draft import draft_dynamic, draft_plan, draft_stored
from fewbits.search.loop import EFFORTS, check_effort
from fewbits.search.memory import memory_needed
from fewbits.search.preparing import (
    Prepared,
    Request,
    asked_placement,
    nothing_to_quantize,
    prepare,
    versions,
    wanted_scheme,
)
from fewbits.search.verdict_data import Parts
from fewbits.targets import refuse_none_in_blocks, resolve_target

# Bytes that a Q/DQ pair with scale and zero point adds to a file; measured on the exported files of three networks.
_PAIR_BYTES = 250


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """What a run would do and take.

    Args:
      plan: Where the search would start.
      model_bytes: Size of the float file.
      quantized_bytes: Estimated size of the quantized file.
      memory_bytes: Estimated peak memory of the run.
      disk_bytes: Estimated size of the output folder.
      seconds: Estimated time; None without data.
      calibration_examples: In the calibration part; None without data.
      selection_examples: In the selection part; None without data.
      verdict_examples: In the verdict part; None without data.
      smallest_budget: The smallest loss that so many verdict examples can exclude; None without data.
      examples_needed: Verdict examples that the budget needs at least.
      max_drop: The budget.
      warnings: What should be known before starting.
    """

    plan: Plan
    model_bytes: int
    quantized_bytes: int
    memory_bytes: int
    disk_bytes: int
    seconds: float | None
    calibration_examples: int | None
    selection_examples: int | None
    verdict_examples: int | None
    smallest_budget: float | None
    examples_needed: int | None
    max_drop: float
    warnings: tuple[str, ...]


def make_forecast(request: Request) -> Forecast:
    """Returns the forecast of a run; with data, two calibration shards are timed.

    Args:
      request: As for the run itself; ``data`` may be None.
    """
    check_effort(request.effort)
    prepared = None if request.data is None else prepare(request)
    parts = None if prepared is None else prepared.parts
    target = resolve_target(request.target)
    model = open_model(request.model, max_memory=request.max_memory) if prepared is None else prepared.model
    stored_only = request.weights_only
    wanted = wanted_scheme(request, target)
    placement = asked_placement(request, model, target, wanted)
    refuse_none_in_blocks(placement, wanted, target)
    if not placement.sites:
        raise TargetError(nothing_to_quantize(model, placement, target), slug="nothing-to-quantize")
    base = Plan(
        target=target.full_name,
        decisions=(),
        seed=request.seed,
        hashes={"model": model.sha256},
        versions=versions(target),
    )
    base = base if prepared is None else prepared.base
    plan = (
        draft_stored(model, target, wanted, asked=request.scheme, base=base)
        if stored_only
        else draft_dynamic(model, target, base=base)
        if request.dynamic_only
        else draft_plan(model, target, base=base)
    )
    fixed = [d for d in plan.quantized if d.role in (Role.WEIGHT, Role.CONSTANT)]
    saved = sum(_saved_bytes(d, model.view.tensors[d.site]) for d in fixed)
    pairs = sum(d.role is Role.ACTIVATION for d in plan.quantized)
    size = max(0, model.file_bytes - saved) + _PAIR_BYTES * pairs
    budget = request.max_drop
    return Forecast(
        plan=plan,
        model_bytes=model.file_bytes,
        quantized_bytes=size,
        memory_bytes=memory_needed(model, plan.quantized),
        disk_bytes=size + 2**20,
        seconds=None if prepared is None or parts is None else _seconds(prepared, parts, plan),
        calibration_examples=None if parts is None else len(parts.calibration),
        selection_examples=None if parts is None else len(parts.selection),
        verdict_examples=None if parts is None else len(parts.verdict),
        smallest_budget=None if parts is None else smallest_certifiable_budget(len(parts.verdict), request.confidence),
        examples_needed=None if not budget else examples_needed(budget, request.confidence),
        max_drop=budget or 0.0,
        warnings=() if prepared is None else prepared.warnings,
    )


def _saved_bytes(decision: Decision, tensor: TensorView) -> int:
    """Returns how many bytes fewer a weight takes in codes than in float32: with its scales where they are many."""
    assert decision.scheme is not None
    if decision.scheme.scaled and not isinstance(decision.scheme.granularity, PerGroup):
        return 3 * tensor.elements
    return 4 * tensor.elements - -(-decision.scheme.stored_bits(tuple(d or 1 for d in tensor.shape or ())) // 8)


def _seconds(prepared: Prepared, parts: Parts, plan: Plan) -> float:
    """Returns the estimated time of a run that gives no node back to float; the difference of two shards is timed."""
    request = prepared.request
    shard = shard_size(prepared.model)
    sites = activation_sites(plan)
    times = []
    for count in (shard, 2 * shard):
        start = time.perf_counter()
        observe(prepared.model, parts.data, parts.calibration[:count], sites)
        times.append(time.perf_counter() - start)
    more = len(parts.calibration[: 2 * shard]) - len(parts.calibration[:shard])
    each = max(0.0, times[1] - times[0]) / more if more else times[0] / len(parts.calibration)
    looks = len(parts.selection) * (1 + len(EFFORTS[request.effort])) + 2 * len(parts.verdict)
    opening = max(0.0, times[0] - each * shard) * (3 + len(EFFORTS[request.effort]))
    seconds = each * (len(parts.calibration) + looks) + opening + request.measuring_seconds
    return seconds if request.time_budget is None else min(seconds, request.time_budget + request.measuring_seconds)
