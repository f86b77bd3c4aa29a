"""Codebooks learned from a tensor: the k values that stand for all of it with the least squared error (1-D k-means).

k-means on a line is solved exactly: clusters are intervals of the sorted values, so that dynamic programming over
their ends finds the optimum. A tensor of more values is cut into as many quantiles, of which the program takes the
means; alternation over all values (Lloyd) then lowers the error to where no mean moves.

Limits: no file format of a runtime holds a codebook of one's own (those of NF4 and of ternary are fixed), so this is
for arrays, and tells how far from the optimum a fixed format is. There is one codebook a tensor; groups have scales.

Source: Wang and Song, Ckmeans.1d.dp (R Journal 3/2, 2011), section 2; weight sharing by k-means: Han et al. 2016
(arXiv 1510.00149), section 3.
"""

from __future__ import annotations

import numpy as np

from fewbits._base.arrays import Array, device_of, namespace, to_numpy
from fewbits._base.errors import NumericsError
from fewbits.numerics.codebook import Codebook
from fewbits.numerics.granularity import PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, quantize, refuse_nonfinite
from fewbits.numerics.scheme import Scheme

# Points of the exact program: its costs are a matrix of 8 MB, gone through once for each value of the codebook.
_MOST_POINTS = 1024
# Alternations over all values; means of some millions of values move by less than a part in a thousand long before.
_ROUNDS = 50
_MOST_BITS = 8


def quantize_kmeans(values: Array, *, bits: int, group_size: int | None = None) -> QTensor:
    """Returns a tensor in codes of a codebook of its own, which has the least squared error of all of so many bits.

    A group's scale is its largest magnitude; the codebook is that of all values over their scales, each counted by the
    square of its scale, as its error is.

    Args:
      values: At least one element, finite; taken as float32.
      bits: 1 to 8; the codebook has 2^bits values, fewer where the tensor has.
      group_size: Elements along the last axis that share a scale; None: one scale for the tensor.
    Raises: NumericsError(slug="codebook") for other bits; NumericsError(slug="nonfinite-values").

    >>> tensor = quantize_kmeans(np.array([1.0, 0.5, -0.25, 0.5], np.float32), bits=2)
    >>> tensor.scheme.format.values, tensor.dequantize().tolist()
    ((-0.25, 0.5, 1.0), [1.0, 0.5, -0.25, 0.5])
    """
    if not 1 <= bits <= _MOST_BITS:
        raise NumericsError(f"a codebook of {bits} bits is not learned; expected 1 to {_MOST_BITS}", slug="codebook")
    refuse_nonfinite(values)
    xp, array = namespace(values), np.asarray(to_numpy(values), dtype=np.float32)
    granularity = PerTensor() if group_size is None else PerGroup(axis=-1, size=group_size)
    groups = np.asarray(granularity.to_groups(array), dtype=np.float64)
    amax = np.abs(groups).max(axis=1, keepdims=True)
    scale = np.where(amax == 0, 1.0, amax)
    weights = np.broadcast_to((scale / scale.max()) ** 2, groups.shape)
    means = kmeans((groups / scale).reshape(-1), 2**bits, weights=weights.reshape(-1))
    learned = Codebook(name=f"kmeans{bits}", values=_distinct(means), source="k-means of the tensor itself")
    shape = granularity.scale_shape(array.shape)
    stored = xp.asarray(scale.astype(np.float32).reshape(shape), device=device_of(values))
    scheme = Scheme(format=learned, granularity=granularity, symmetric=True)
    return quantize(values, QParams(scheme=scheme, scale=stored, zero_point=xp.zeros_like(stored)))


def kmeans(values: np.ndarray, count: int, *, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the means of the best clusters on a line, ascending, float64; fewer where distinct values are fewer.

    Exact for up to 1024 distinct values; beyond, the exact answer for as many quantiles, then a local optimum.

    Args:
      values: [n], finite, n >= 1.
      count: How many clusters.
      weights: How much the squared error of each counts, > 0; None: 1 each.
    """
    points, place = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True)
    heavy = np.bincount(place, weights=weights, minlength=len(points)).astype(np.float64)
    if len(points) <= count:
        return points
    if len(points) <= _MOST_POINTS:
        return _exact(points, heavy, count)
    mass = np.cumsum(heavy)
    cuts = np.unique(np.searchsorted(mass, np.linspace(0, mass[-1], _MOST_POINTS + 1)[:-1]))
    totals = np.add.reduceat(heavy, cuts)
    return _settled(points, heavy, _exact(np.add.reduceat(points * heavy, cuts) / totals, totals, count))


def _exact(points: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Returns the optimal means of ascending points: least[k][j] = min over i < j of least[k - 1][i] + cost(i, j)."""
    total = len(points)
    shifted = points - np.average(points, weights=weights)  # far from 0 the difference of squares would cancel
    sums = (np.concatenate(([0.0], np.cumsum(a))) for a in (weights, weights * shifted, weights * shifted**2))
    mass, first, second = (a[None, :] - a[:, None] for a in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = np.where(mass > 0, np.maximum(second - first * first / mass, 0), np.inf)  # of the points i to j - 1
    least, cuts = cost[0], []
    for _ in range(count - 1):
        each = least[:, None] + cost
        cuts.append(each.argmin(axis=0))
        least = each.min(axis=0)
    bounds = [total]
    for found in reversed(cuts):
        bounds.append(int(found[bounds[-1]]))
    starts = np.array([0, *bounds[:0:-1]])
    return np.asarray(np.add.reduceat(points * weights, starts) / np.add.reduceat(weights, starts))


def _settled(points: np.ndarray, weights: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Returns means that are those of the points nearest to them."""
    mass, sums = (np.concatenate(([0.0], np.cumsum(a))) for a in (weights, weights * points))
    for _ in range(_ROUNDS):
        ends = np.searchsorted(points, (means[1:] + means[:-1]) / 2)
        bounds = np.concatenate(([0], ends, [len(points)]))
        heavy = np.diff(mass[bounds])
        moved = np.where(heavy > 0, np.diff(sums[bounds]) / np.where(heavy > 0, heavy, 1), means)
        if np.array_equal(moved, means):
            break
        means = moved
    return means


def _distinct(means: np.ndarray) -> tuple[float, ...]:
    """Returns the means as float32 tells them apart; one alone gets 0 or 1 beside it, as a codebook has two values."""
    seen = np.unique(means.astype(np.float32))
    return tuple(np.unique(np.append(seen, np.float32(0 if seen[0] else 1))) if len(seen) < 2 else seen)
