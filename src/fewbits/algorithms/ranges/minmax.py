"""The whole range: nothing saturates."""

from __future__ import annotations

from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits.algorithms.ranges.base import RangeRule
from fewbits.calibration.histogram import Histogram
from fewbits.numerics.format import Int


@final
class MinMax(RangeRule):
    """low = min, high = max."""

    def from_histogram(
        self, histogram: Histogram, fmt: Int, *, symmetric: bool, parameter: float | None
    ) -> tuple[float, float]:
        if symmetric:
            return -histogram.amax, histogram.amax
        return histogram.low, histogram.high

    def from_groups(self, groups: Array, fmt: Int, *, parameter: float | None) -> Array:
        xp = namespace(groups)
        return xp.max(xp.abs(groups), axis=1)


ALGORITHM: RangeRule = MinMax()
