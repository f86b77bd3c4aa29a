"""Weights as 16-bit floats where the float model would be handed over: half the bytes, and float's own kernels.

A Cast stands before each weight, and the runtime folds it when it opens the file: what runs then is the float model of
rounded weights. Read as float16, a weight is off by 2**-11 of itself at most (0.1 % of one step of 8 bits for most).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits._base.errors import TargetError
from fewbits.measurement.benchmark import ModelFiles, Performance
from fewbits.models.onnx.model import OnnxModel
from fewbits.numerics.schemes import SCHEMES
from fewbits.planning.plan import Plan
from fewbits.search.building import Candidate
from fewbits.search.draft import draft_stored
from fewbits.search.finished import Judged
from fewbits.search.handing_over import is_slower
from fewbits.targets import stored_scheme
from fewbits.targets.base import Target

SCHEME = "fp16"
# Below this the file that came in is handed over, byte for byte: a few bytes are not worth another file.
_WORTH = 1.1
# From what is best to what is worst for the reader of a verdict.
_RANKS = ("met", "undecided", "not met")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Halves:
    """A file whose weights are 16-bit floats, and what was measured of it.

    Args:
      model: The model that it is of: as it was opened, or mended.
      candidate: Plan and file.
      file: Where it lies.
      performance: Beside the float file.
      judged: On the verdict data.
    """

    model: OnnxModel
    candidate: Candidate
    file: ModelFiles
    performance: Performance
    judged: Judged


def draft_halves(model: OnnxModel, target: Target, base: Plan) -> Plan | None:
    """Returns the plan that stores as float16 each weight that bears it; None where the target or no weight does.

    Args:
      model: The float model.
      target: The rules.
      base: Where seed, split, hashes and versions are taken from.
    """
    if SCHEME not in target.schemes:
        return None
    wanted = stored_scheme(SCHEME, SCHEMES[SCHEME], target)
    try:
        plan = draft_stored(model, target, wanted, asked=SCHEME, base=base)
    except TargetError as error:
        if error.slug != "half-out-of-range":
            raise
        return None
    return plan if plan.quantized else None


def saves(file: ModelFiles, original: ModelFiles) -> bool:
    """Returns whether a file is enough smaller than the one that came in to be another one."""
    return file.size * _WORTH <= original.size


def as_fast(performance: Performance, *, mended: bool) -> bool:
    """Returns whether a file is as fast, within noise, as the float file that it would stand for.

    Args:
      performance: Of the file beside the float model.
      mended: Whether it would stand for the float model in canonical form.
    """
    speedup = performance.over_mended if mended else performance.speedup
    return speedup is not None and not is_slower(speedup)


def judges_alike(halves: Judged, floats: Judged | None) -> bool:
    """Returns whether the verdict of 16-bit weights is no worse than that of the float model itself.

    The float model loses nothing; its verdict is "undecided" only where examples are too few to show that.

    Args:
      halves: What the verdict data say of them.
      floats: The same of the float model; None where it need not be known.
    """
    if halves.verdict is None or halves.verdict.status == _RANKS[0]:
        return True
    if floats is None or floats.verdict is None:
        return False
    return _RANKS.index(halves.verdict.status) <= _RANKS.index(floats.verdict.status)


def told_of(float_reason: str) -> str:
    """Returns what a reader should know of a file that computes in float from 16-bit weights."""
    return (
        f"no integers are handed over, since {float_reason}; weights are 16-bit floats instead, which compute as float "
        "does [halves]"
    )
