"""The nearest of a few values, decided exactly: by counting the thresholds that a value exceeds."""

from __future__ import annotations

import numpy as np

from fewbits._base.arrays import Array, like, namespace

# Up to so many thresholds, one comparison each is faster than a binary search (measured: bench_formats.py).
_FEW = 16


def thresholds(grid: np.ndarray, *, ties_up: np.ndarray) -> np.ndarray:
    """Returns float32 t so that the place in the grid of the value nearest to v is the count of t < v.

    ``v > middle`` is ``v > t`` with t the largest float32 <= middle. Where the middle is itself a float32, a tie that
    goes up takes the float32 before it; and where float64 rounded the middle onto a float32 (neighbours 2**28 apart),
    what the rounding lost says on which side of it the middle lies.

    Args:
      grid: Values that float32 holds, ascending, [k].
      ties_up: For each pair of neighbours, whether their middle goes to the upper one, [k - 1].
    """
    grid = grid.astype(np.float64)
    low, high = grid[:-1] / 2, grid[1:] / 2
    middle = low + high
    part = middle - low
    lost = (low - (middle - part)) + (high - part)  # by the rounding of the sum, exactly (Knuth's TwoSum)
    below = middle.astype(np.float32)
    below = np.where(below.astype(np.float64) > middle, np.nextafter(below, np.float32(-np.inf)), below)
    met = below.astype(np.float64) == middle
    upward = met & ((lost < 0) | ((lost == 0) & ties_up))
    found: np.ndarray = np.where(upward, np.nextafter(below, np.float32(-np.inf)), below).astype(np.float32)
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
