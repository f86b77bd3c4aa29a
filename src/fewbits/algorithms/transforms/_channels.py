"""Factors of channels: what one layer gives in smaller numbers, the layers that read it take in larger ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits.algorithms.transforms.base import Transform

# Factors beyond these would take weights to where float32 has fewer bits.
_LARGEST_EXPONENT = 20
# What roundings to float32 change of a number at most, there and back: of the number and of the reciprocal of a factor,
# three, and their products.
_ROUNDED = 4 * 2.0**-24


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelScale(Transform):
    """Factors s of the channels between two layers: the first one's output / s, the second one's weight * s.

    The model stays the same function: (W1 / s) x is W1 x / s, and operators between that let a positive factor through
    hand it to W2 s. Each weight is rounded to float32 once more, which moves it by at most 2**-24 of itself; where s is
    a power of two nothing is rounded, and the model computes the same bits.

    Args:
      factors: [channels] float32, > 0.
    """

    factors: Array

    def fold(self, weight: Array, bias: Array | None, *, axis: int) -> tuple[Array, Array]:
        """Returns weight and bias of the layer that gives its output / s, its output channels along ``axis``."""
        xp = namespace(weight, self.factors)
        start = xp.zeros_like(self.factors) if bias is None else bias
        return weight / xp.reshape(self.factors, _along(axis, weight.ndim)), start / self.factors

    def take(self, weight: Array, *, axis: int, groups: int = 1) -> Array:
        """Returns the weight of a layer that reads the output / s.

        Args:
          weight: float32, output channels along the other one of the first two axes.
          axis: Its input channel axis; 1 where there are several groups.
          groups: Groups of channels of a convolution; weight is [outputs, channels / groups, ...].
        """
        xp = namespace(weight, self.factors)
        if groups == 1:
            return weight * xp.reshape(self.factors, _along(axis, weight.ndim))
        outputs, inputs, *taps = weight.shape
        parts = xp.reshape(weight, (groups, outputs // groups, inputs, -1))
        return xp.reshape(parts * xp.reshape(self.factors, (groups, 1, inputs, 1)), (outputs, inputs, *taps))

    def keeps(self, array: Array, *, axis: int) -> bool:
        """Returns whether each value keeps its bits, but for roundings, when it is divided along an axis."""
        along = namespace(array, self.factors).reshape(self.factors, _along(axis, array.ndim))
        return _kept(array, array / along, (array / along) * along)

    def keeps_in(self, weight: Array, *, axis: int, groups: int = 1) -> bool:
        """Returns whether each weight keeps its bits, but for roundings, in ``take``."""
        xp = namespace(weight, self.factors)
        taken = self.take(weight, axis=axis, groups=groups)
        back = ChannelScale(factors=xp.ones_like(self.factors) / self.factors).take(taken, axis=axis, groups=groups)
        return _kept(weight, taken, back)


def _kept(before: Array, after: Array, back: Array) -> bool:
    """Returns whether numbers are what they were but for roundings, after a factor and without it again.

    ``back`` has been rounded once or twice more than ``after``, and the reciprocals of factors once.
    """
    xp = namespace(before)
    return bool(xp.all(xp.isfinite(after))) and bool(xp.all(xp.abs(back - before) <= _ROUNDED * xp.abs(before)))


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if i == axis % rank else 1 for i in range(rank))


def inside_float32(factors: Array) -> Array:
    """Returns the factors with those beyond 2**-20 and 2**20 taken to the ends, where weights keep their 24 bits.

    >>> import numpy as np
    >>> inside_float32(np.array([3.0, 0.0, 1e9])).tolist()
    [3.0, 9.5367431640625e-07, 1048576.0]
    """
    return namespace(factors).clip(factors, 2.0**-_LARGEST_EXPONENT, 2.0**_LARGEST_EXPONENT)


def grouped(weight: Array, *, axis: int, groups: int = 1) -> Array:
    """Returns a weight as [groups, outputs of a group, inputs of a group, taps]."""
    xp = namespace(weight)
    rows = xp.permute_dims(weight, (1, 0)) if axis == 0 and weight.ndim == 2 else weight
    outputs, inputs = rows.shape[0], rows.shape[1]
    return xp.reshape(rows, (groups, outputs // groups, inputs, -1))
