"""The nearest of a few values, decided exactly: by counting the thresholds that a value exceeds."""

from __future__ import annotations

import numpy as np

from fewbits._base.arrays import Array, like, namespace

# Up to so many thresholds, one comparison each is faster than a binary search (measured: bench_formats.py).
_FEW = 16


def thresholds(grid: np.ndarray, *, ties_up: np.ndarray) -> np.ndarray:
    """Returns float32 t so that the place in the grid of the value nearest to v is the count of t < v.

    The middle of two neighbours is exact in float64 (25 bits, unless they lie 2**28 apart, where its rounding is below
    float32's step at the larger one). ``v > middle`` is ``v > t`` with t the largest float32 <= middle; where the
    middle is itself a float32 and a tie goes up, t is the float32 before it.

    Args:
      grid: Values that float32 holds, ascending, [k].
      ties_up: For each pair of neighbours, whether their middle goes to the upper one, [k - 1].
    """
    grid = grid.astype(np.float64)
    middle = grid[:-1] / 2 + grid[1:] / 2
    below = middle.astype(np.float32)
    below = np.where(below.astype(np.float64) > middle, np.nextafter(below, np.float32(-np.inf)), below)
    tie = below.astype(np.float64) == middle
    found: np.ndarray = np.where(tie & ties_up, np.nextafter(below, np.float32(-np.inf)), below).astype(np.float32)
    found.flags.writeable = False
    return found


def places(values: Array, limits: np.ndarray) -> Array:
    """Returns how many of the ascending limits each value exceeds, an integer array of the shape of the values."""
    xp = namespace(values)
    if len(limits) >= _FEW:
        found = xp.searchsorted(like(limits, values), xp.reshape(values, (-1,)), side="left")
        return xp.reshape(found, values.shape)
    place = xp.zeros_like(values, dtype=xp.uint8)
    for limit in limits.tolist():
        place += xp.astype(values > limit, xp.uint8)
    return place
