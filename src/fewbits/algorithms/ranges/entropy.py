"""The range that keeps most of a distribution's information: least KL divergence of what codes tell from the values.

For each candidate range, values beyond its ends are counted at the ends (P); codes are what is inside, each code's
count spread evenly over the bins of it that hold values (Q). The range with the least KL(P || Q) is taken.

Source: Migacz, 8-bit inference with TensorRT (GTC 2017), slides 26 to 38; there for symmetric ranges.
"""

from __future__ import annotations

from typing import final

import numpy as np

from fewbits._base.arrays import Array, namespace
from fewbits.algorithms.ranges.base import RangeRule
from fewbits.calibration.histogram import Histogram
from fewbits.numerics.format import Int

# Ranges tried, as fractions of the one that was seen, both ends at once; as those of the least squared error.
_FRACTIONS = np.arange(64, 12, -1) / 64.0


@final
class Entropy(RangeRule):
    """For activations; the symmetric codes of a weight cover all of it, as few values make no distribution."""

    def from_histogram(
        self, histogram: Histogram, fmt: Int, *, symmetric: bool, parameter: float | None
    ) -> tuple[float, float]:
        if histogram.amax == 0.0:
            return 0.0, 0.0
        used = np.flatnonzero(histogram.counts)
        centers, counts = histogram.centers()[used], histogram.counts[used].astype(np.float64)
        low, high = (-histogram.amax, histogram.amax) if symmetric else (min(histogram.low, 0), max(histogram.high, 0))
        steps = fmt.max_code - fmt.min_code
        lost = [_divergence(centers, counts, f * low, f * high, steps) for f in _FRACTIONS.tolist()]
        best = float(_FRACTIONS[int(np.argmin(lost))])
        return best * low, best * high

    def from_groups(self, groups: Array, fmt: Int, *, parameter: float | None) -> Array:
        xp = namespace(groups)
        return xp.max(xp.abs(groups), axis=1)


def _divergence(centers: np.ndarray, counts: np.ndarray, low: float, high: float, steps: int) -> float:
    """Returns KL(P || Q) in nats of a range, from the bins that hold values, ascending."""
    inside = (centers >= low) & (centers <= high)
    if not inside.any():
        return float("inf")
    kept = counts[inside]
    wanted = kept.copy()
    first, last = int(np.argmax(inside)), len(inside) - 1 - int(np.argmax(inside[::-1]))
    wanted[0] += counts[:first].sum()
    wanted[-1] += counts[last + 1 :].sum()
    scale = (high - low) / steps
    codes = np.rint((centers[inside] - low) / scale).astype(np.int64)
    each = np.bincount(codes, weights=kept) / np.maximum(1, np.bincount(codes))
    told = each[codes]
    p, q = wanted / wanted.sum(), told / told.sum()
    return float((p * np.log(p / q)).sum())


ALGORITHM: RangeRule = Entropy()
