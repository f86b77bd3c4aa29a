"""The forecast of a run: what would be done, and what it would take, before any long work."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, final

from fewbits._base.errors import TargetError
from fewbits.evidence import examples_needed, smallest_certifiable_budget
from fewbits.flow import observe
from fewbits.models.onnx.feeding import shard_size
from fewbits.models.onnx.opening import open_model
from fewbits.planning.plan import Plan
from fewbits.planning.site import Role
from fewbits.search.building import activation_sites
from fewbits.search.draft import draft_plan
from fewbits.search.job import Request, nothing_to_quantize, prepare, versions
from fewbits.search.loop import EFFORTS, check_effort
from fewbits.targets import place, resolve_target

# What Python and the libraries hold before any model, bytes; measured on ONNX Runtime 1.31.1 with onnx-ir 1.1.
_BASE_BYTES = 160 * 2**20
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


def make_forecast(
    model: str, *, data: Any, max_drop: float, confidence: float, target: str, effort: str, seed: int
) -> Forecast:
    """Returns the forecast of a run; with data, one calibration shard is timed."""
    check_effort(effort)
    opened, chosen = open_model(model), resolve_target(target)
    placement = place(opened.view, chosen)
    if not placement.integer:
        raise TargetError(nothing_to_quantize(opened, placement, chosen), slug="nothing-to-quantize")
    base = Plan(
        target=chosen.full_name,
        decisions=(),
        seed=seed,
        hashes={"model": opened.sha256},
        versions=versions(),
    )
    plan = draft_plan(opened, chosen, base=base)
    tensors = opened.view.tensors
    stored = sum(tensors[d.site].elements for d in plan.quantized if d.role in (Role.WEIGHT, Role.CONSTANT))
    pairs = sum(d.role is Role.ACTIVATION for d in plan.quantized)
    size = max(0, len(opened.original) - 3 * stored) + _PAIR_BYTES * pairs
    shard = shard_size(opened)
    inner = 4 * shard * sum(tensors[n].elements for n in opened.view.producer if n in tensors)
    parts: dict[str, int | None] = {"calibration": None, "selection": None, "verdict": None}
    seconds: float | None = None
    smallest: float | None = None
    warnings: tuple[str, ...] = ()
    if data is not None:
        request = Request(
            model=model, data=data, max_drop=max_drop, confidence=confidence, target=target, effort=effort, seed=seed
        )
        prepared = prepare(request)
        counts = prepared.parts
        parts = {
            "calibration": len(counts.calibration),
            "selection": len(counts.selection),
            "verdict": len(counts.verdict),
        }
        start = time.perf_counter()
        few = counts.calibration[:shard]
        observe(opened, counts.data, few, activation_sites(plan))
        each = (time.perf_counter() - start) / len(few)
        looks = len(counts.selection) * (1 + len(EFFORTS[effort])) + 2 * len(counts.verdict)
        seconds = each * (len(counts.calibration) + looks) + request.latency_seconds
        smallest = smallest_certifiable_budget(len(counts.verdict), confidence)
        warnings = prepared.warnings
    return Forecast(
        plan=plan,
        model_bytes=len(opened.original),
        quantized_bytes=size,
        memory_bytes=_BASE_BYTES + 4 * len(opened.original) + 2 * inner,
        disk_bytes=size + 2**20,
        seconds=seconds,
        calibration_examples=parts["calibration"],
        selection_examples=parts["selection"],
        verdict_examples=parts["verdict"],
        smallest_budget=smallest,
        examples_needed=None if max_drop <= 0 else examples_needed(max_drop, confidence),
        max_drop=max_drop,
        warnings=warnings,
    )
