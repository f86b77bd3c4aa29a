"""The range that holds a given percentage of the values by magnitude."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import ClassVar, final

import numpy as np

from fewbits._base.arrays import Array, namespace
from fewbits.algorithms.ranges.base import RangeRule
from fewbits.calibration.histogram import HALF_BINS, Histogram
from fewbits.numerics.format import Int


def _needed(share: float, count: int) -> int:
    """Returns how many of ``count`` values are at least ``share`` percent; exact, because 55 / 100 * 100 > 55.

    >>> _needed(55.0, 100), _needed(99.99, 10_000), _needed(99.99, 10_001)
    (55, 9999, 10000)
    """
    return max(1, ceil(Fraction(str(share)) / 100 * count))


@final
class Percentile(RangeRule):
    """Both ends are cut at the smallest magnitude that at least ``parameter`` percent of all values do not exceed.

    No default is safe for every model (percentiles destroy transformers): the search compares, it does not trust.
    """

    default: ClassVar[float | None] = 99.99

    def accepts(self, parameter: float) -> bool:
        return 50.0 < parameter <= 100.0

    def from_histogram(
        self, histogram: Histogram, fmt: Int, *, symmetric: bool, parameter: float | None
    ) -> tuple[float, float]:
        if histogram.amax == 0.0:
            return 0.0, 0.0
        share = (self.default if parameter is None else parameter) or 100.0
        magnitudes = histogram.counts[HALF_BINS:] + histogram.counts[:HALF_BINS][::-1]
        covered = histogram.zeros + np.cumsum(magnitudes)
        edge = int(np.searchsorted(covered, _needed(share, histogram.total), side="left"))
        cut = (edge + 1) * histogram.width
        if symmetric:
            return -min(cut, histogram.amax), min(cut, histogram.amax)
        return max(histogram.low, -cut), min(histogram.high, cut)

    def from_groups(self, groups: Array, fmt: Int, *, parameter: float | None) -> Array:
        xp = namespace(groups)
        share = (self.default if parameter is None else parameter) or 100.0
        ordered = xp.sort(xp.abs(groups), axis=1)
        return ordered[:, _needed(share, groups.shape[1]) - 1]


ALGORITHM: RangeRule = Percentile()
