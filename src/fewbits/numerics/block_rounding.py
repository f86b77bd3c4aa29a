"""Codes of GGUF's blocks of 32, chosen by one rounding: bit for bit those of the encoders of GGUF's own tools.

Three deviations, all where those encoders store infinity, NaN or wrapped codes, and one where their choice is left to
the compiler:

- Values that no fp16 scale (or minimum) of the block can reach saturate first.
- Where 1/scale is infinite (values near 1e-38; the stored scale is 0), every code is that of zero.
- Codes are clipped before they become bytes, not after.
- Minimums, and scales of Q4_1, Q5_1 and Q8_0, are +0 where they are zero: which zero of a block a library calls its
  smallest value is its own affair.

Source: gguf 0.19, quants.py; ggml-quants.c, quantize_row_q4_0_ref and its neighbours (Q8_0 rounds half away from
zero, the others half up).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, device_of, extremes, ignore_overflow, largest_magnitude, namespace
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.named import Solver
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scheme import Scheme

FP16_MAX = 65504.0


def stored_fp16(values: Array) -> Array:
    """Returns float32 values as fp16 holds them, saturating at 65504."""
    fp16 = FORMATS["fp16"]
    return fp16.decode(fp16.nearest(values))


class _BlockRounding(Solver):
    """One scale a block from its extremes, codes rounded to it before it is rounded to fp16."""

    __slots__ = ()

    def solve(self, rows: Array, scheme: Scheme) -> QTensor:
        xp = namespace(rows)
        assert isinstance(scheme.granularity, PerGroup) and isinstance(scheme.format, Int), "schemes of this rule"
        blocks = xp.reshape(rows, (rows.shape[0], -1, scheme.granularity.size))
        codes, scale, low = self._round(blocks, scheme.format)
        scale = xp.reshape(stored_fp16(scale), blocks.shape[:2])
        # + 0 turns -0 into 0.
        offset = None if low is None else -xp.reshape(stored_fp16(low) + 0.0, blocks.shape[:2])
        params = QParams(scheme=scheme, scale=scale, zero_point=xp.zeros_like(scale), offset=offset)
        codes = xp.astype(codes, getattr(xp, scheme.format.code_dtype))
        return QTensor(codes=xp.reshape(codes, rows.shape), params=params)

    @abstractmethod
    def _round(self, blocks: Array, fmt: Int) -> tuple[Array, Array, Array | None]:
        """Returns the codes, still float32, of [rows, blocks, size], and scales and minimums [rows, blocks, 1]."""


@final
@dataclass(frozen=True, slots=True)
class LargestToEnd(_BlockRounding):
    """scale = v / min_value, v the value of the largest magnitude (the first of several): Q4_0 and Q5_0.

    So v itself has the lowest code, and the scale is negative where v is positive.
    """

    @property
    def name(self) -> str:
        return "largest value to the lowest"

    def _round(self, blocks: Array, fmt: Int) -> tuple[Array, Array, Array | None]:
        xp = namespace(blocks)
        reach = -fmt.min_value * FP16_MAX
        blocks = xp.clip(blocks, -reach, reach)
        size = xp.abs(blocks)
        places = xp.arange(blocks.shape[2], dtype=xp.int64, device=device_of(blocks))
        largest = size == largest_magnitude(blocks, (2,))
        # Not argmax: libraries differ in which of several equal values they take.
        first = xp.min(xp.where(largest, places, places[-1]), axis=2, keepdims=True)
        scale = xp.take_along_axis(blocks, first, axis=2) / fmt.min_value
        codes = xp.floor(blocks * _reciprocal(scale) + (0.5 - fmt.min_value))
        return xp.clip(codes, 0.0, fmt.max_value - fmt.min_value) + fmt.min_value, scale, None


@final
@dataclass(frozen=True, slots=True)
class EndsToEnds(_BlockRounding):
    """minimum = smallest value, scale = (largest - smallest) / max_value: Q4_1 and Q5_1."""

    @property
    def name(self) -> str:
        return "both ends to both ends"

    def _round(self, blocks: Array, fmt: Int) -> tuple[Array, Array, Array | None]:
        xp = namespace(blocks)
        low, high = extremes(blocks, (2,))
        low = xp.clip(low, -FP16_MAX, FP16_MAX)
        high = xp.minimum(high, low + FP16_MAX * fmt.max_value)
        scale = xp.abs(high - low) / fmt.max_value
        codes = xp.floor((blocks - low) * _reciprocal(scale) + 0.5)
        return xp.clip(codes, 0.0, fmt.max_value), scale, low


@final
@dataclass(frozen=True, slots=True)
class LargestToReach(_BlockRounding):
    """scale = amax / max_value, codes rounded half away from zero: Q8_0."""

    @property
    def name(self) -> str:
        return "largest to the highest, ties away"

    def _round(self, blocks: Array, fmt: Int) -> tuple[Array, Array, Array | None]:
        xp = namespace(blocks)
        reach = fmt.max_value * FP16_MAX
        blocks = xp.clip(blocks, -reach, reach)
        scale = xp.abs(largest_magnitude(blocks, (2,))) / fmt.max_value
        quotient = blocks * _reciprocal(scale)
        size = xp.abs(quotient)
        whole = xp.floor(size)
        whole = whole + xp.floor(2 * (size - whole))
        return xp.clip(xp.where(quotient < 0, -whole, whole), -fmt.max_value, fmt.max_value), scale, None


def _reciprocal(scale: Array) -> Array:
    """Returns 1/scale in float32, and 0 where that is not finite."""
    xp = namespace(scale)
    with ignore_overflow():
        inverse = 1.0 / xp.where(scale == 0, xp.ones_like(scale), scale)
    return xp.where((scale == 0) | ~xp.isfinite(inverse), xp.zeros_like(scale), inverse)
