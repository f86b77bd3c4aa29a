"""Weights in blocks along their reduction axis: scales, then codes under them."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np

from fewbits._base.arrays import Array, to_numpy
from fewbits._base.catalog import nearest
from fewbits._base.errors import UsageError
from fewbits.algorithms.exact_scales import exact_scales
from fewbits.algorithms.half_quadratic import half_quadratic
from fewbits.algorithms.rounders import ROUNDERS
from fewbits.algorithms.rounders.gptq import Feedback, gptq_codes
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scaling import MIN_SCALE, affine_from_amax, choose_affine
from fewbits.numerics.scheme import Scheme

# Parts of the full range that are tried, the whole first: Gaussian weights want nearly all of it in 8 bits, four fifths
# in 4 bits and less than half in 2.
_FRACTIONS = {bits: np.linspace(1.0, low, 16) for bits, low in ((2, 0.25), (4, 0.55), (8, 0.9))}
# Elements in work at a time: a few arrays of them stay in the processor's cache.
_ELEMENTS = 1 << 16


MINMAX, MSE, LARGE, WEIGHTED = "minmax", "mse", "large-mse", "weighted-mse"
HALF_QUADRATIC, EXACT, EXACT_WEIGHTED = "hqq", "exact-mse", "exact-weighted-mse"
# How the scale of a block is chosen.
BLOCK_RULES = (MINMAX, MSE, LARGE, WEIGHTED, HALF_QUADRATIC, EXACT, EXACT_WEIGHTED)
# Those that need data.
_WEIGHED = (WEIGHTED, EXACT_WEIGHTED)
# Those that a search tries. The others lower the error of blocks, and of layers on examples held out, but KWT-1 in 4
# bits comes no closer to float with them (docs/adr/0016).
TRIED_RULES = (MINMAX, MSE, LARGE, WEIGHTED)
_TWO_BITS = 2
# Rounders that need data.
FED = ("gptq",)


def needs_inputs(rule: str | None, rounder: str | None) -> bool:
    """Returns whether scales or codes are chosen by the layer's inputs."""
    return rule in _WEIGHED or rounder in FED


def range_without_data(scheme: Scheme, *, multiplied: bool) -> str:
    """Returns the rule that scales of blocks go by where there are no data to weigh errors with.

    Rows of a table are not multiplied with anything: the values themselves are what counts.
    """
    return LARGE if multiplied and scheme.format.stored_bits <= _TWO_BITS else MSE


def check_block_rule(rule: str, rounder: str) -> None:
    """Raises UsageError for a range rule that blocks do not have, or a rounder that is none."""
    if rule not in BLOCK_RULES:
        raise UsageError(
            f"the scales of blocks do not go by {rule!r}; {nearest(rule, list(BLOCK_RULES))}", slug="range-rule"
        )
    if not ROUNDERS[rounder].in_blocks:
        raise UsageError(
            f"the codes of blocks do not go by {rounder!r}, which needs a layer that runs in integers; use 'gptq' or "
            "'nearest'",
            slug="range-rule",
        )


def quantize_blocks(
    values: Array,
    scheme: Scheme,
    *,
    rule: str,
    rounder: str,
    second_moment: Array | None = None,
    passed: Feedback | None = None,
) -> QTensor:
    """Returns a matrix quantized in blocks.

    Args:
      values: A matrix, finite float32, blocks along the axis that the scheme says.
      scheme: Integers per-group(axis, size).
      rule: Of ``BLOCK_RULES``.
      rounder: Name in the catalog of rounders.
      second_moment: X^T X [K, K] of the inputs that are multiplied along that axis; None where unknown.
      passed: What ``feedback`` made of it, where that is known already.
    """
    assert isinstance(scheme.granularity, PerGroup)
    turned = scheme.granularity.axis % 2 == 0
    rows = np.ascontiguousarray(np.asarray(to_numpy(values)).T) if turned else np.asarray(to_numpy(values))
    lying = replace(scheme, granularity=PerGroup(axis=1, size=scheme.granularity.size))
    importance = np.diagonal(np.asarray(second_moment)) if rule in _WEIGHED and second_moment is not None else None
    params = scales_of_blocks(rows, lying, rule, importance)
    if passed is not None and rounder == "gptq":
        found = QTensor(codes=gptq_codes(rows, passed, params), params=params)
    else:
        found = ROUNDERS[rounder].choose(rows, params, second_moment)
    if not turned:
        return QTensor(codes=found.codes, params=replace(found.params, scheme=scheme))
    back = QParams(
        scheme=scheme,
        scale=np.ascontiguousarray(np.asarray(found.scale).T),
        zero_point=np.ascontiguousarray(np.asarray(found.zero_point).T),
    )
    return QTensor(codes=np.ascontiguousarray(np.asarray(found.codes).T), params=back)


def scales_of_blocks(rows: Array, scheme: Scheme, rule: str, importance: Array | None = None) -> QParams:
    """Returns the scales of a matrix whose blocks lie along its last axis.

    Under ``minmax`` the block's range is that of the codes. Under ``mse`` the scale makes sum_k h_k (w_k - d q_k)^2
    small: some parts of the range are tried, and for the codes of each the best scale there is,
    d = sum h w q / sum h q^2. h is 1, or the importance under ``weighted-mse``. That is the error that counts for
    nearest codes; under error feedback, which shifts errors between columns, scales of ``mse`` serve better. Under
    ``large-mse`` h = w_k^2 + the mean square of the block: what 2 bits leave of a block is its large weights (KL of
    KWT-1 to float 0.19 where ``mse`` gives 0.34; in 4 bits it gains nothing: benchmarks/bench_weight_only.py). The
    ``exact`` two have the errors of ``mse`` and ``weighted-mse``, and take the best scale of all there are
    (``exact_scales``), beside zero points of ``mse`` or one less or more. ``hqq`` is ``half_quadratic``.

    Args:
      rows: [rows, K], finite float32.
      scheme: Integers per-group(-1, size), with or without zero points; symmetric with scales said to be stored as
        fp32, these may be negative, so that the side with a code more is that which needs it.
      rule: Of ``BLOCK_RULES``.
      importance: h [K] >= 0, the diagonal of X^T X; None: all weights count alike.
    Source: the objective is that of the imatrix search of llama.cpp (quantize_row_*_impl), solved by our own grid.
    """
    assert isinstance(scheme.granularity, PerGroup) and isinstance(scheme.format, Int)
    values = np.ascontiguousarray(to_numpy(rows), dtype=np.float32)  # NumPy's sums go by how values lie
    size = scheme.granularity.size
    count, columns = values.shape
    blocks = -(-columns // size)
    weights = np.ones(columns) if importance is None else np.asarray(to_numpy(importance), dtype=np.float64)
    if not weights.any():
        weights = np.ones(columns)
    padded = np.zeros(blocks * size)
    padded[:columns] = weights / weights.max()
    search = _Search(scheme, padded.reshape(blocks, size).astype(np.float32), large=rule == LARGE)
    scale, zero = np.empty((count, blocks), np.float32), np.empty((count, blocks), np.float32)
    step = max(1, _ELEMENTS // (blocks * size))
    chosen = {
        MINMAX: search.widest,
        HALF_QUADRATIC: search.half_quadratic,
        EXACT: search.exact,
        EXACT_WEIGHTED: search.exact,
    }.get(rule, search.best)
    for start in range(0, count, step):
        part = values[start : start + step]
        if blocks * size != columns:
            part = np.pad(part, ((0, 0), (0, blocks * size - columns)))
        groups = part.reshape(len(part), blocks, size)
        scale[start : start + step], zero[start : start + step] = chosen(groups)
    return QParams(scheme=scheme, scale=scale, zero_point=zero)


@final
class _Search:
    """The search over scales of one matrix, some rows at a time: groups [rows, blocks, size]."""

    def __init__(self, scheme: Scheme, importance: np.ndarray, *, large: bool) -> None:
        assert isinstance(scheme.format, Int)
        self.format, self.symmetric, self.importance, self.large = scheme.format, scheme.symmetric, importance, large
        # A scale of which the scheme says how it is stored may be negative.
        self.signed = scheme.symmetric and scheme.scale is not None

    def widest(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scales and zero points under which nothing saturates."""
        if not self.signed:
            return self._part(groups, 1.0)
        # The side of the largest magnitude has one code more; dividing by a power of two is exact.
        low, high = groups.min(axis=2), groups.max(axis=2)
        amax = np.maximum(-low, high)
        wide = np.where(amax == 0, np.float32(1), np.maximum(amax / np.float32(-self.format.min_value), MIN_SCALE))
        return np.where(high > -low, -wide, wide).astype(np.float32), np.zeros_like(amax)

    def best(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scales and zero points with the least error; a tie keeps the wider range."""
        scale, zero = self.widest(groups)
        weights = self._weights(groups)
        least = _error(groups, self._codes(groups, scale, zero), scale, weights)
        for sign in (1, -1) if self.signed else (1,):  # -8 to 7 steps, or -7 to 8: whichever suits the block
            side = groups if sign > 0 else -groups
            for fraction in _FRACTIONS.get(self.format.bits, _FRACTIONS[8]):
                tried, places = self._part(side, float(fraction))
                # Rounding the zero point is part of the range; the scale is then free, and has a best value for its
                # codes.
                fitted = _fitted(side, self._codes(side, tried, places), tried, weights)
                error = _error(side, self._codes(side, fitted, places), fitted, weights)
                better = error < least
                least = np.where(better, error, least)
                scale, zero = np.where(better, sign * fitted, scale), np.where(better, places, zero)
        return scale, zero

    def exact(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scales with the least error of all, for each zero point that is tried; a tie keeps the grid's."""
        scale, zero = self.best(groups)
        weights = np.broadcast_to(self._weights(groups), groups.shape)
        shape, flat = scale.shape, groups.reshape(-1, groups.shape[2])
        tops = np.full(shape, -1.0)
        low, high = self.format.min_value, self.format.max_value
        start = zero
        for shift in (0,) if self.symmetric else (0, -1, 1):
            places = np.clip(start + shift, low, high)
            for sign in (1, -1) if self.signed else (1,):
                reach = places - low, high - places
                below, above = (np.rint(r).astype(np.int64).reshape(-1) for r in reach)
                found, gain = exact_scales(np.float32(sign) * flat, weights.reshape(flat.shape), below, above)
                better = gain.reshape(shape) > np.maximum(tops, 0)
                tops = np.where(better, gain.reshape(shape), tops)
                scale = np.where(better, np.float32(sign) * found.reshape(shape), scale)
                zero = np.where(better, places, zero)
        return scale, zero

    def half_quadratic(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the scales, and zero points to whole codes, under which few weights err much."""
        scale, zero = self.widest(groups)
        side = np.where(scale < 0, np.float32(-1), np.float32(1))
        turned, wide = groups * side[..., None], scale * side
        if not self.symmetric:
            _, real = half_quadratic(turned, wide, zero, self.format, fit="zero")
            zero = np.clip(np.rint(real), self.format.min_value, self.format.max_value)
        fitted, _ = half_quadratic(turned, wide, zero, self.format, fit="scale")
        return side * fitted, zero

    def _part(self, groups: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns scales > 0 and zero points of a part of the range."""
        if self.symmetric:
            found = affine_from_amax(np.abs(groups).max(axis=2) * fraction, self.format)
        else:
            found = choose_affine(groups.min(axis=2) * fraction, groups.max(axis=2) * fraction, self.format)
        return np.asarray(found[0], np.float32), np.asarray(found[1], np.float32)

    def _weights(self, groups: np.ndarray) -> np.ndarray:
        """Returns how much the error of each element counts, in a shape that broadcasts against the groups."""
        if not self.large:
            return self.importance
        amax = np.abs(groups).max(axis=2, keepdims=True)
        squares = np.square(groups / np.where(amax == 0, np.float32(1), amax))  # of the values they could be 0
        return np.asarray(self.importance * (squares + squares.mean(axis=2, keepdims=True)))

    def _codes(self, groups: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Returns codes less their zero points: multiples of the scale, float32."""
        shift = zero[..., None]
        low, high = self.format.min_value - shift, self.format.max_value - shift
        return np.asarray(np.clip(np.rint(groups / scale[..., None]), low, high))


def _fitted(groups: np.ndarray, codes: np.ndarray, scale: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the scales with the least weighted error for given codes."""
    weighted = codes * weights
    above, below = (weighted * groups).sum(axis=2), (weighted * codes).sum(axis=2)
    fits = (below > 0) & (above > 0)
    fitted = np.where(fits, above / np.where(fits, below, 1), scale)
    return np.maximum(fitted, MIN_SCALE).astype(np.float32)


def _error(groups: np.ndarray, codes: np.ndarray, scale: np.ndarray, weights: np.ndarray) -> np.ndarray:
    wrong = codes - groups / scale[..., None]  # in units of the scale: squares of tiny weights would be 0
    return np.asarray((wrong * wrong * weights).sum(axis=2) * scale.astype(np.float64) ** 2)
