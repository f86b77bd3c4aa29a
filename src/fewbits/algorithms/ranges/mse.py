"""The range with the least mean squared error between values and dequantized codes, or of both behind a LeakyRelu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import UsageError
from fewbits.algorithms.ranges.base import RangeRule
from fewbits.calibration.histogram import Histogram
from fewbits.numerics.format import Int
from fewbits.numerics.scaling import MIN_SCALE

# Ends tried, as fractions of the full range: from clipping it to a fifth (4-bit Gaussians want about a half) in steps
# of one part in 64 (a quarter of what one code of 8 bits moves near the optimum; the error is flat there).
_FRACTIONS = np.arange(64, 12, -1) / 64.0
# Fractions tried for weights, each a pass over the tensor.
_WEIGHT_FRACTIONS = tuple(float(f) for f in np.arange(40, 13, -1) / 40.0)
# Alternations between the two ends of an asymmetric range; the second changes an end by at most one step in practice.
_ROUNDS = 2


@final
class MeanSquaredError(RangeRule):
    """Searches both ends over fractions of the observed range; a tie keeps the wider one.

    The parameter is the slope of negative values in what follows: with ``mse:0.1`` the error is that of the outputs of
    a LeakyRelu of 0.1, where errors of negative values count for a hundredth.
    """

    default: ClassVar[float | None] = 1.0

    def accepts(self, parameter: float) -> bool:
        return 0.0 < parameter <= 1.0

    def from_histogram(
        self, histogram: Histogram, fmt: Int, *, symmetric: bool, parameter: float | None
    ) -> tuple[float, float]:
        if histogram.amax == 0.0:
            return 0.0, 0.0
        used = np.flatnonzero(histogram.counts)
        error = _Error(
            centers=histogram.centers()[used],
            counts=histogram.counts[used].astype(np.float64),
            slope=1.0 if parameter is None else parameter,
        )
        if symmetric:
            ends = _FRACTIONS * histogram.amax
            best = float(ends[np.argmin(error.symmetric(ends, fmt))])
            return -best, best
        low, high = histogram.low, histogram.high
        for _ in range(_ROUNDS):
            if histogram.high > 0:
                ends = _FRACTIONS * histogram.high
                high = float(ends[np.argmin(error.affine(np.full_like(ends, low), ends, fmt))])
            if histogram.low < 0:
                ends = _FRACTIONS * histogram.low
                low = float(ends[np.argmin(error.affine(ends, np.full_like(ends, high), fmt))])
            else:
                break
        return low, high

    def from_groups(self, groups: Array, fmt: Int, *, parameter: float | None) -> Array:
        if parameter not in (None, self.default):
            raise UsageError(
                f"'mse:{parameter:g}' looks behind a LeakyRelu, for activations alone; write 'mse' for weights",
                slug="range-rule",
            )
        xp = namespace(groups)
        half = Int(bits=fmt.bits, signed=True)  # as affine_from_amax reads it, of whatever sign the codes are
        amax = xp.max(xp.abs(groups), axis=1)
        safe = xp.where(amax == 0, xp.ones_like(amax), amax)
        best = xp.full_like(amax, float("inf"))
        chosen = amax
        for fraction in _WEIGHT_FRACTIONS:
            scale = xp.clip(safe * (fraction / half.max_value), MIN_SCALE, None)
            # In units of the scale, and then of amax: squares of the values would leave float32.
            places = groups / scale[:, None]
            wrong = xp.clip(xp.round(places), half.min_value, half.max_value) - places
            error = xp.sum(wrong * wrong, axis=1) * (scale / safe) ** 2
            better = error < best
            best = xp.where(better, error, best)
            chosen = xp.where(better, amax * fraction, chosen)
        return chosen


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Error:
    """The summed squared error of codes for candidate ranges, behind a function with a slope for negative values.

    Args:
      centers: Values, [bins].
      counts: How often each came, [bins].
      slope: Of negative values.
    """

    centers: Array
    counts: Array
    slope: float

    def symmetric(self, ends: Array, fmt: Int) -> Array:
        """Returns the error for each candidate end, with the scale and zero point of ``affine_from_amax``."""
        half = 1 << (fmt.bits - 1)
        return self._of(ends / (half - 1), np.full_like(ends, half), fmt.max_code - fmt.min_code)

    def affine(self, low: Array, high: Array, fmt: Int) -> Array:
        """Returns the error for each candidate range, with the scale and zero point of ``choose_affine``."""
        steps = fmt.max_code - fmt.min_code
        scale = (high - low) / steps
        return self._of(scale, np.round(-low / scale), steps)

    def _of(self, scale: Array, zero: Array, steps: int) -> Array:
        """Returns the error of codes 0 to steps for each scale and zero point, [candidates]."""
        scale, zero = scale[:, None], zero[:, None]
        codes = np.clip(np.round(self.centers[None, :] / scale) + zero, 0, steps)
        wrong = self._behind((codes - zero) * scale) - self._behind(self.centers)[None, :]
        return np.einsum("ij,ij,j->i", wrong, wrong, self.counts)

    def _behind(self, values: Array) -> Array:
        return values if self.slope == 1.0 else np.where(values < 0, values * self.slope, values)


ALGORITHM: RangeRule = MeanSquaredError()
