"""The range of ``mse`` with its negative end cut: for tensors whose negative side is shrunk right behind them."""

from __future__ import annotations

from typing import ClassVar, final

from fewbits._base.arrays import Array
from fewbits.algorithms.ranges.base import RangeRule
from fewbits.algorithms.ranges.mse import ALGORITHM as LEAST_ERROR
from fewbits.calibration.histogram import Histogram
from fewbits.numerics.format import Int


@final
class CutLow(RangeRule):
    """[share * low, high] of the range [low, high] with the least mean squared error.

    A LeakyRelu multiplies the negative side by its slope, and the errors of that side with it, while both sides share
    one step. What the cut costs on the one side and gains on the other no histogram of the tensor says: the search asks
    the model.  Symmetric codes have one end only, and so do weights: nothing is cut there.
    """

    default: ClassVar[float | None] = 0.5

    def accepts(self, parameter: float) -> bool:
        return 0.0 < parameter <= 1.0

    def from_histogram(
        self, histogram: Histogram, fmt: Int, *, symmetric: bool, parameter: float | None
    ) -> tuple[float, float]:
        low, high = LEAST_ERROR.from_histogram(histogram, fmt, symmetric=symmetric, parameter=None)
        share = self.default if parameter is None else parameter
        assert share is not None
        # Where nothing lies above 0, the negative end is the whole range.
        return (low if symmetric or high == 0.0 else low * share), high

    def from_groups(self, groups: Array, fmt: Int, *, parameter: float | None) -> Array:
        return LEAST_ERROR.from_groups(groups, fmt, parameter=None)


ALGORITHM: RangeRule = CutLow()
