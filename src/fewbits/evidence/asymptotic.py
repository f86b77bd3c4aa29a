"""Confidence bounds that hold in the limit of many examples only; whoever shows them says so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fewbits._base.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def t_limits(sums: Floats, sizes: Floats, alpha: float) -> tuple[float, float]:
    """Returns one-sided lower and upper limits of sum(sums) / sum(sizes), each at level 1 - alpha.

    Student's t on the linearised ratio: z_g = sum_g - ratio size_g, variance G/(G-1) sum z_g^2 / (sum of sizes)^2.
    With groups of size one it is the plain paired t interval. Where every difference is the same the width is zero.

    Args:
      sums, sizes: Sum and number of the values of each independent group, [groups], groups >= 2.
      alpha: In (0, 1/2).
    Raises: DataError(slug="too-few-groups") for fewer than two groups.
    Source: Cochran, Sampling Techniques (1977), section 6.4 (ratio estimator).
    """
    _need_two(sums.size)
    weight = sizes.sum()
    ratio = float(sums.sum() / weight)
    margin = _quantile(sums.size, alpha) * _spread(sums - ratio * sizes) / float(weight)
    return ratio - margin, ratio + margin


def fieller_limits(losses: Floats, base: Floats, alpha: float) -> tuple[float, float]:
    """Returns one-sided limits of sum(losses) / |sum(base)|, each at level 1 - alpha.

    The ratios r that Student's t on losses - r base does not refuse.

    Args:
      losses, base: Sum of the paired losses and of the float scores of each independent group, [groups], groups >= 2.
      alpha: In (0, 1/2).
    Raises: DataError(slug="too-few-groups"); DataError(slug="relative-base") if the float mean cannot be told from 0.
    Source: Fieller, Some problems in interval estimation, JRSS B 16 (1954).
    """
    _need_two(losses.size)
    x, y = losses, base * math.copysign(1.0, float(base.sum()))
    groups = x.size
    factor = _quantile(groups, alpha) ** 2 * groups / (groups - 1.0)
    dx, dy = x - x.mean(), y - y.mean()
    # (sum x - r sum y)^2 = factor * sum (dx - r dy)^2, a quadratic in r.
    square = float(y.sum()) ** 2 - factor * float(dy @ dy)
    if square <= 0.0:
        raise DataError(
            f"the mean float score over {groups} independent examples cannot be told from 0, so a relative loss has no "
            "meaning; give the budget in the metric's own units",
            slug="relative-base",
        )
    half = float(x.sum() * y.sum()) - factor * float(dx @ dy)
    constant = float(x.sum()) ** 2 - factor * float(dx @ dx)
    root = math.sqrt(max(half * half - square * constant, 0.0))
    return (half - root) / square, (half + root) / square


def _need_two(groups: int) -> None:
    if groups < 2:
        raise DataError(
            "got 1 independent example (or group); a bound on an unbounded score needs at least 2: give more data",
            slug="too-few-groups",
        )


def _spread(centred: Floats) -> float:
    """Returns the standard deviation of a sum of independent terms, given the terms with their mean removed."""
    groups = centred.size
    return math.sqrt(groups / (groups - 1.0) * float(centred @ centred))


def _quantile(groups: int, alpha: float) -> float:
    from scipy import special

    return float(special.stdtrit(groups - 1.0, 1.0 - alpha))
