"""The range with the least mean squared error between values and dequantized codes."""

from __future__ import annotations

from typing import final

import numpy as np

from fewbits._base.arrays import Array, namespace
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


def _error(centers: Array, counts: Array, scale: Array, zero: Array, steps: int) -> Array:
    """Returns the summed squared error of codes 0 to steps for each candidate scale and zero point, [candidates]."""
    scale, zero = scale[:, None], zero[:, None]
    codes = np.clip(np.round(centers[None, :] / scale) + zero, 0, steps)
    wrong = (codes - zero) * scale - centers[None, :]
    return np.einsum("ij,ij,j->i", wrong, wrong, counts)


def _symmetric_error(centers: Array, counts: Array, ends: Array, fmt: Int) -> Array:
    """Returns the error for each candidate end, with the scale and zero point of ``affine_from_amax``."""
    half = 1 << (fmt.bits - 1)
    return _error(centers, counts, ends / (half - 1), np.full_like(ends, half), fmt.max_code - fmt.min_code)


def _affine_error(centers: Array, counts: Array, low: Array, high: Array, fmt: Int) -> Array:
    """Returns the error for each candidate range, with the scale and zero point of ``choose_affine``."""
    steps = fmt.max_code - fmt.min_code
    scale = (high - low) / steps
    return _error(centers, counts, scale, np.round(-low / scale), steps)


@final
class MeanSquaredError(RangeRule):
    """Searches both ends over fractions of the observed range; a tie keeps the wider one."""

    def from_histogram(
        self, histogram: Histogram, fmt: Int, *, symmetric: bool, parameter: float | None
    ) -> tuple[float, float]:
        if histogram.amax == 0.0:
            return 0.0, 0.0
        used = np.flatnonzero(histogram.counts)
        centers = histogram.centers()[used]
        counts = histogram.counts[used].astype(np.float64)
        if symmetric:
            ends = _FRACTIONS * histogram.amax
            best = float(ends[np.argmin(_symmetric_error(centers, counts, ends, fmt))])
            return -best, best
        low, high = histogram.low, histogram.high
        for _ in range(_ROUNDS):
            if histogram.high > 0:
                ends = _FRACTIONS * histogram.high
                high = float(ends[np.argmin(_affine_error(centers, counts, np.full_like(ends, low), ends, fmt))])
            if histogram.low < 0:
                ends = _FRACTIONS * histogram.low
                low = float(ends[np.argmin(_affine_error(centers, counts, ends, np.full_like(ends, high), fmt))])
            else:
                break
        return low, high

    def from_groups(self, groups: Array, fmt: Int, *, parameter: float | None) -> Array:
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


ALGORITHM: RangeRule = MeanSquaredError()
