"""What the calibration examples never showed: tensors that do not change, and branches that are not taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fewbits.calibration.histogram import Histogram
from fewbits.calibration.statistics import Statistics
from fewbits.models.onnx.feeding import model_batches, run_options
from fewbits.models.onnx.model import OnnxModel
from fewbits.planning.plan import Plan
from fewbits.planning.site import OpView, Role
from fewbits.runtimes import RUNTIMES
from fewbits.runtimes.base import Options

if TYPE_CHECKING:
    from fewbits.datasets.base import Dataset

# Named in one line; the report's table of layers has every site.
_SHOWN = 3
_BRANCHES = {True: "then", False: "else"}


def unchanging_sites(plan: Plan, statistics: Statistics) -> tuple[str, ...]:
    """Returns a warning, or none, that names the quantized tensors which hold one value in all examples.

    Their range is what was seen, with 0: all but that value and what lies between it and 0 would saturate.
    """
    found = []
    for decision in plan.quantized:
        seen = statistics.histograms.get(decision.site)
        value = None if decision.role is not Role.ACTIVATION or seen is None else only_value(seen)
        if value is not None:
            taken = "its scale is 1" if value == 0 else f"its range reaches from 0 to {value:.3g}"
            found.append(f"{decision.site!r} of {decision.op} {decision.node!r} is always {value:.3g}, and {taken}")
    if not found:
        return ()
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        f"in all {statistics.examples} calibration examples {'; '.join(found[:_SHOWN])}{more}: other values would be "
        "cut off; give examples in which it changes, or set the node to 'float' in the plan [site-unchanging]",
    )


def only_value(seen: Histogram) -> float | None:
    """Returns the value that all values of a histogram are, to one part in 4096; None where they differ, or are none.

    One bin is at most that part of the largest magnitude wide, a sixteenth of an 8-bit code.
    """
    filled = int(np.count_nonzero(np.asarray(seen.counts)))
    if filled + bool(seen.zeros) != 1:
        return None
    return 0.0 if not filled else seen.high if seen.high > 0 else seen.low


def untaken_branches(model: OnnxModel, data: Dataset, indices: np.ndarray) -> tuple[str, ...]:
    """Returns a warning for each branch of an If in the main graph that no calibration example takes.

    Args:
      model: The float model.
      data: Examples.
      indices: The calibration examples.
    """
    deciding = [op for op in model.view.ops if op.op == "If" and not model.view.is_constant(op.inputs[0])]
    if not deciding or not len(indices):
        return ()
    names = list(dict.fromkeys(op.inputs[0] for op in deciding))
    session = RUNTIMES["ort"].open(model.serialized(extra_outputs=names), run_options(model, Options()))
    seen: dict[str, set[bool]] = {name: set() for name in names}
    for feeds, _ in model_batches(model, data, indices):
        told = {**feeds, **session.run(feeds)}
        for name in names:
            seen[name].update(bool(value) for value in np.asarray(told[name]).reshape(-1))
    return tuple(
        _untaken(op, branch, len(indices))
        for op in deciding
        for value, branch in _BRANCHES.items()
        if seen[op.inputs[0]] == {not value}
    )


def _untaken(op: OpView, branch: str, examples: int) -> str:
    return (
        f"If {op.name!r}: none of the {examples} calibration examples takes its {branch} branch; {op.outputs[0]!r} has "
        "the range of the other branch, and values beyond it would be cut off; give examples that take both "
        "[branch-untaken]"
    )
