"""The scale with the least weighted squared error there is, block by block: by a sweep, not by a grid.

For weights w with importance h, codes q within their limits and a scale d, the error sum h (w - d q)^2 is least at

    d = sum h w q / sum h q^2,    error = sum h w^2 - (sum h w q)^2 / sum h q^2.

At the best pair each q_k is the code nearest to w_k / d, and nearest codes change only where |w_k| / d crosses j - 1/2:
at d = |w_k| / (j - 1/2). So the codes of all scales there are come up once each as d falls over those thresholds, each
step adding h |w| to the first sum and h (2 j - 1) to the second. The best of them is the optimum: no code moved up or
down, of however many at once, does better.

Source: the objective is that of the imatrix search of llama.cpp (quantize_row_*_impl); the sweep is our own.
"""

from __future__ import annotations

import numpy as np

from fewbits.numerics.scaling import MIN_SCALE

# Thresholds in work at a time: they are sorted, with two sums in float64.
_THRESHOLDS = 1 << 19


def exact_scales(
    groups: np.ndarray, weights: np.ndarray, below: np.ndarray, above: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the best scale of each block and what it gains: sum h w^2 minus the least error.

    Args:
      groups: w [blocks, size], finite.
      weights: h [blocks, size] >= 0.
      below: Whole steps that codes may go under zero, [blocks] integers >= 0.
      above: The same over zero.
    Returns: scale [blocks] float32 > 0, 1 where every value is 0 or cannot be reached; gain [blocks] float64 >= 0.
    """
    scale, gain = np.ones(len(groups), np.float32), np.zeros(len(groups))
    most = int(max(below.max(initial=0), above.max(initial=0)))
    if most == 0:
        return scale, gain
    step = max(1, _THRESHOLDS // (most * groups.shape[1]))
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        scale[part], gain[part] = _sweep(groups[part], weights[part], below[part], above[part], most)
    return scale, gain


def _sweep(
    groups: np.ndarray, weights: np.ndarray, below: np.ndarray, above: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    values = groups.astype(np.float64)
    size, heavy = np.abs(values), weights.astype(np.float64)
    limit = np.where(values < 0, below[:, None], above[:, None])
    codes = np.arange(1, most + 1)
    # [blocks, size, codes]; a threshold of 0 is never crossed.
    reached = codes <= limit[..., None]
    crossed = np.where(reached, size[..., None] / (codes - 0.5), 0.0).reshape(len(values), -1)
    order = np.argsort(-crossed, axis=1, kind="stable")
    counts = np.take_along_axis(crossed, order, axis=1) > 0

    def sums(each: np.ndarray) -> np.ndarray:
        flat = np.broadcast_to(each, reached.shape).reshape(len(values), -1)
        return np.cumsum(np.where(counts, np.take_along_axis(flat, order, axis=1), 0.0), axis=1)

    products, squares = sums((heavy * size)[..., None]), sums(heavy[..., None] * (2 * codes - 1))
    gains = np.where(squares > 0, products * products / np.where(squares > 0, squares, 1.0), 0.0)
    best = gains.argmax(axis=1)[:, None]
    gain = np.take_along_axis(gains, best, axis=1)[:, 0]
    above_zero, below_zero = (np.take_along_axis(a, best, axis=1)[:, 0] for a in (products, squares))
    scale = above_zero / np.where(gain > 0, below_zero, 1.0)
    scale = np.where(gain > 0, np.maximum(scale, MIN_SCALE), 1.0)
    return scale.astype(np.float32), gain
