"""GPTQ: codes that answer for one another's errors, by the second moment of the layer's inputs.

For a layer Y = X W^T with weight W [rows, K] and H = X^T X, codes of values Q make the output error
tr(E H E^T), E = W - Q.  Columns are rounded one after the other, that of the largest H_kk first.  With
H = M D M^T (M upper triangular with ones on its diagonal, D diagonal) the error is sum_k D_kk |E M_k|^2, and

    q_k = nearest(w_k + sum over j before k of (w_j - q_j) M_jk)

makes each term as small as a rounding can.  That is GPTQ in the form of LDLQ: the same codes, without the inverse of H.
Scales are given and stay, so that any order of columns leaves the file's format as it is.

Source: Frantar et al. 2022 (arXiv 2210.17323), section 3; Chee et al. 2023 (arXiv 2307.13304), theorem 6 (LDLQ = GPTQ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from fewbits._base.arrays import Array, device_of, freeze, ignore_overflow, namespace, to_numpy
from fewbits._base.errors import NumericsError
from fewbits.algorithms.rounders.base import Rounder
from fewbits.numerics.format import Int
from fewbits.numerics.qtensor import QParams, QTensor, as_array, quantize, refuse_nonfinite

# Shares of the mean of diag H that are added to its diagonal, the first with which Cholesky succeeds. The first is the
# usual one of GPTQ; doubled up to ten times the mean, where a second moment of whatever data has long succeeded.
_DAMPING = 0.01
_MOST_DAMPING = 10.0
# Columns that are rounded one by one; all beyond is matrix products.
_COLUMNS = 32
# Rows do not depend on each other: so many float64 of them are in work at a time (64 MB).
_CHUNK = 1 << 23


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feedback:
    """What H says of how errors are passed on; layers with the same input share it.

    Args:
      order: [K] int64, the columns in the order in which they are rounded.
      upper: [K, K] float64, M above, in that order: ones on the diagonal, zeros below.
      damping: What was added to the diagonal, as a share of its mean; infinite where eigenvalues had to be raised.
      dead: How many columns have H_kk = 0: their inputs were never but 0, and they are rounded plainly.
    """

    order: Array
    upper: Array
    damping: float
    dead: int

    def __post_init__(self) -> None:
        for name in ("order", "upper"):
            object.__setattr__(self, name, freeze(getattr(self, name)))


def feedback(second_moment: Array, *, damping: float = _DAMPING) -> Feedback:
    """Returns M of H + damping * mean(diag H) * I = M D M^T, columns by falling H_kk.

    Args:
      second_moment: H [K, K], symmetric, of the layer's inputs; any factor > 0 of it will do.
      damping: At least so much; doubled as long as H is not positive definite in float64.
    Raises: NumericsError(slug="second-moment") unless H is square and finite with a diagonal >= 0.
    """
    moment = np.asarray(to_numpy(second_moment), dtype=np.float64)
    diagonal = np.diagonal(moment) if moment.ndim == 2 and moment.shape[0] == moment.shape[1] else np.array([-1.0])
    if not (np.isfinite(moment).all() and (diagonal >= 0).all()):
        raise NumericsError(
            f"a second moment of shape {list(moment.shape)} is not square and finite with a diagonal >= 0; "
            "pass X^T X of the layer's inputs",
            slug="second-moment",
        )
    dead = diagonal == 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    order = np.argsort(-diagonal, kind="stable")
    scaled = moment[np.ix_(order, order)] / mean
    np.fill_diagonal(scaled, np.where(dead, 1.0, diagonal / mean)[order])
    root, added = _root(scaled, damping)
    return Feedback(order=order, upper=root / np.diagonal(root), damping=added, dead=int(dead.sum()))


def _root(moment: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    """Returns R, upper triangular with R R^T = H + damping * I, and the damping that it took."""
    diagonal = np.diagonal(moment).copy()
    while damping <= _MOST_DAMPING:
        try:
            return _upper(moment, diagonal + damping), damping
        except np.linalg.LinAlgError:
            damping = max(2 * damping, _DAMPING)
    values, vectors = np.linalg.eigh(moment)  # no second moment of real data comes here
    floored = (vectors * np.maximum(values, _DAMPING)) @ vectors.T
    return _upper(floored, np.diagonal(floored) + _DAMPING), float("inf")


def _upper(moment: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Returns the upper triangular root: Cholesky's lower one of the matrix read from its other end."""
    turned = moment[::-1, ::-1].copy()
    np.fill_diagonal(turned, diagonal[::-1])
    return np.ascontiguousarray(np.linalg.cholesky(turned)[::-1, ::-1])


def gptq_codes(weight: Array, second_moment: Array | Feedback, params: QParams) -> Array:
    """Returns codes under which the layer's output changes little, whatever becomes of the weight itself.

    With a diagonal H these are the nearest codes, bit for bit.

    Args:
      weight: [rows, K], finite, taken as float32.
      second_moment: H [K, K] of the layer's inputs, or what ``feedback`` made of it.
      params: Scales, shapes as for a tensor [rows, K]; any format.
    Returns: [rows, K], dtype ``params.scheme.format.code_dtype``, in the library of the weight.
    Raises: NumericsError(slug="second-moment") where H does not fit; NumericsError(slug="nonfinite-values").
    """
    passed = second_moment if isinstance(second_moment, Feedback) else feedback(second_moment)
    if len(weight.shape) != 2 or weight.shape[1] != len(passed.order):
        raise NumericsError(
            f"a second moment of {len(passed.order)} inputs does not fit a weight of shape {list(weight.shape)}; "
            "its last axis is the one that inputs are multiplied along",
            slug="second-moment",
        )
    refuse_nonfinite(weight)
    shape = (int(weight.shape[0]), int(weight.shape[1]))
    params.check_fits(shape)
    values = np.asarray(to_numpy(weight), dtype=np.float32)
    grid = _Grid(params, shape)
    codes = np.empty(shape, dtype=params.scheme.format.code_dtype)
    step = max(1, _CHUNK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        codes[rows] = _Chunk(values[rows], passed, grid, rows).run()
    return codes if isinstance(weight, np.ndarray) else namespace(weight).asarray(codes, device=device_of(weight))


@final
class _Grid:
    """The scales of a matrix, as it is asked for some of its columns; rounds as ``quantize`` does."""

    def __init__(self, params: QParams, shape: tuple[int, int]) -> None:
        self.format = params.scheme.format
        stored = params.scheme.zero_point
        self.real_zero = stored is not None and not isinstance(stored, Int)
        spread = params.scheme.granularity.expand

        def whole(stored: Array) -> np.ndarray:
            return np.broadcast_to(np.asarray(to_numpy(spread(as_array(stored), shape))), shape)

        self.scale = whole(params.scale)
        self.zero = whole(params.zero_point) if bool(np.any(to_numpy(params.zero_point) != 0)) else None
        self.offset = None if params.offset is None else whole(params.offset)

    def columns(self, rows: slice, columns: np.ndarray) -> tuple[np.ndarray | None, ...]:
        """Returns scale, zero point and offset of some columns, [columns, rows], each column's in one piece."""
        found = (self.scale, self.zero, self.offset)
        return tuple(None if a is None else np.ascontiguousarray(a[rows, columns].T) for a in found)

    def round(
        self, values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, offset: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the nearest codes, and what they stand for; all float32 [rows]."""
        fmt = self.format
        with ignore_overflow():  # an infinite quotient saturates
            places = values if offset is None else values + offset
            places = places / np.where(scale == 0, np.float32(np.inf), scale)
        if isinstance(fmt, Int):
            places = np.rint(places + zero if self.real_zero and zero is not None else places)
            if zero is not None and not self.real_zero:
                reach = float(fmt.max_code - fmt.min_code)
                places = np.clip(places, -reach, reach) + zero
            codes = np.clip(places, fmt.min_value, fmt.max_value)
            back = codes
        else:
            codes = np.asarray(fmt.nearest(places))
            back = np.asarray(fmt.decode(codes))
        back = (back if zero is None else back - zero) * scale
        return codes, back if offset is None else back - offset


@final
class _Chunk:
    """Some rows in work: their weights, with the errors of earlier columns added; where rounded, their own errors."""

    def __init__(self, weight: np.ndarray, passed: Feedback, grid: _Grid, rows: slice) -> None:
        self.weight, self.order, self.upper = weight, passed.order, passed.upper
        self.grid, self.rows = grid, rows
        # Turned, so that a column is one piece of memory.
        self.work = np.ascontiguousarray(weight.T[passed.order], dtype=np.float64)
        self.codes = np.empty(weight.shape, dtype=grid.format.code_dtype)

    def run(self) -> np.ndarray:
        self._solve(0, len(self.order))
        return self.codes

    def _solve(self, start: int, stop: int) -> None:
        """Rounds columns, all errors of those before them being passed on already; halves, so that most is GEMM."""
        if stop - start <= _COLUMNS:
            self._one_by_one(start, stop)
            return
        middle = start + (stop - start) // 2
        self._solve(start, middle)
        self.work[middle:stop] += self.upper[start:middle, middle:stop].T @ self.work[start:middle]
        self._solve(middle, stop)

    def _one_by_one(self, start: int, stop: int) -> None:
        columns = self.order[start:stop]
        weights = np.ascontiguousarray(self.weight[:, columns].T)
        scale, zero, offset = self.grid.columns(self.rows, columns)
        assert scale is not None
        codes = np.empty(weights.shape, dtype=self.codes.dtype)
        for i in range(stop - start):
            k = start + i
            if i:
                self.work[k] += self.upper[start:k, k] @ self.work[start:k]
            wanted = self.work[k].astype(np.float32)
            codes[i], back = self.grid.round(
                wanted, scale[i], None if zero is None else zero[i], None if offset is None else offset[i]
            )
            np.subtract(weights[i], back, out=self.work[k], dtype=np.float64)
        self.codes[:, columns] = codes.T


@final
class Gptq(Rounder):
    """Error feedback by the second moment of the inputs; nearest codes where none is known."""

    def choose(self, values: Array, params: QParams, second_moment: Array | None = None) -> QTensor:
        if second_moment is None:
            return quantize(values, params)
        return QTensor(codes=gptq_codes(values, second_moment, params), params=params)


ALGORITHM: Rounder = Gptq()
