"""A histogram on power-of-two bins: integer counts, so that merging is exact in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from fewbits._base.arrays import Array, exponent_above, freeze, same_array, to_numpy
from fewbits._base.errors import DataError

# Bins on each side of zero. amax lies in the upper half of them, so 8 bits get at least 16 bins a step.
HALF_BINS = 8192
_HALF_EXPONENT = 13
# Elements taken at a time: the block and its temporaries stay inside a 1 MB second-level cache.
_BLOCK = 1 << 16
# Exponent of a tensor of zeros; below every float32 exponent.
_EMPTY_EXPONENT = -200


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """Counts of a tensor's values in bins of width 2**(exponent - 13), symmetric about zero; exact zeros apart.

    Bin i of ``counts`` holds values in [(i - 8192) * width, (i - 8191) * width). The exponent is the smallest with
    |value| < 2**exponent for all values, so it is a function of the values and not of the order of their coming;
    widening halves the bins exactly (floor(floor(x / w) / 2) == floor(x / 2w)). Update and merge are therefore
    associative and commutative to the last bit.

    Args:
      exponent: Power of two above the largest magnitude.
      counts: int64 [16384], values other than zero.
      zeros: Number of values that are exactly zero.
      low: Smallest value seen (0 for an empty one).
      high: Largest value seen.
    """

    exponent: int
    counts: Array
    zeros: int
    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", freeze(self.counts))

    @property
    def width(self) -> float:
        """Width of a bin, in units of the tensor."""
        return float(2.0 ** (self.exponent - _HALF_EXPONENT))

    @property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum()) + self.zeros

    @property
    def amax(self) -> float:
        """Largest magnitude."""
        return max(-self.low, self.high)

    def centers(self) -> Array:
        """Returns the middle of each bin, float64 [16384]."""
        return (np.arange(2 * HALF_BINS) - HALF_BINS + 0.5) * self.width

    def merge(self, other: Histogram) -> Histogram:
        """Returns the histogram of both sets of values; exact, in any order."""
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            exponent=exponent,
            counts=self._widened(exponent) + other._widened(exponent),
            zeros=self.zeros + other.zeros,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
        )

    def _widened(self, exponent: int) -> Array:
        """Returns the counts on the bins of a larger exponent."""
        shift = exponent - self.exponent
        if shift == 0:
            return self.counts
        if shift > _HALF_EXPONENT:  # all that is left of the sign
            wide = np.zeros_like(self.counts)
            wide[HALF_BINS - 1] = self.counts[:HALF_BINS].sum()
            wide[HALF_BINS] = self.counts[HALF_BINS:].sum()
            return wide
        step = 1 << shift
        wide = np.zeros_like(self.counts)
        kept = HALF_BINS // step
        wide[HALF_BINS - kept : HALF_BINS + kept] = self.counts.reshape(-1, step).sum(axis=1)
        return wide

    def same(self, other: Histogram) -> bool:
        """Returns whether both hold the same counts to the last one."""
        mine = (self.exponent, self.zeros, self.low, self.high)
        return mine == (other.exponent, other.zeros, other.low, other.high) and same_array(self.counts, other.counts)


EMPTY = Histogram(exponent=_EMPTY_EXPONENT, counts=np.zeros(2 * HALF_BINS, dtype=np.int64), zeros=0, low=0.0, high=0.0)


def histogram_of(values: Array, *, where: str = "the tensor") -> Histogram:
    """Returns the histogram of a tensor.

    Args:
      values: Floating point of at most 64 bits, any shape; float32 takes half the time of float64.
      where: What the tensor is, for the message.
    Raises: DataError(slug="activation-nonfinite") for NaN or infinity.
    """
    flat = to_numpy(values).reshape(-1)
    if flat.size == 0:
        return EMPTY
    # + 0.0 makes -0.0 to 0.0: which zero min finds depends on the order of the values, and bytes are compared.
    low, high = min(float(flat.min()), 0.0) + 0.0, max(float(flat.max()), 0.0) + 0.0
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(
            f"{where} becomes NaN or infinite on the calibration data; the float model overflows there",
            slug="activation-nonfinite",
        )
    amax = max(-low, high)
    zeros = int(flat.size - np.count_nonzero(flat))
    if amax == 0.0:
        return Histogram(exponent=_EMPTY_EXPONENT, counts=EMPTY.counts, zeros=zeros, low=0.0, high=0.0)
    exponent = exponent_above(amax)
    counts = np.zeros(2 * HALF_BINS, dtype=np.int64)
    # float32 where the factor 2**(13 - exponent) is a float32 of at least 1: a smaller one would push denormals to
    # zero, and negative ones out of their bin.
    narrow = -100 < exponent <= _HALF_EXPONENT and flat.dtype.itemsize <= np.dtype(np.float32).itemsize
    dtype = np.float32 if narrow else np.float64
    factor = dtype(np.ldexp(1.0, _HALF_EXPONENT - exponent))
    scaled = np.empty(min(_BLOCK, flat.size), dtype=dtype)
    index = np.empty(scaled.size, dtype=np.int64)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        part, places = scaled[: block.size], index[: block.size]
        np.multiply(block, factor, out=part)  # exact: a power of two
        np.floor(part, out=part)
        np.add(part, dtype(HALF_BINS), out=part)  # exact: small integers
        np.copyto(places, part, casting="unsafe")
        counts += np.bincount(places, minlength=2 * HALF_BINS)
    counts[HALF_BINS] -= zeros
    return Histogram(exponent=exponent, counts=counts, zeros=zeros, low=low, high=high)
