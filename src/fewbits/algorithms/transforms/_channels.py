"""Factors of channels: what one layer gives in smaller numbers, the layers that read it take in larger ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, bits_of, floats_of, namespace, same_array
from fewbits.algorithms.transforms.base import Transform

# Bits of a float32: its mantissa, and that of the square root of two, where rounding by exponents turns up.
_MANTISSA = 23
_ROOT_OF_TWO = 0x3504F3
# Factors beyond these would take weights to where float32 has fewer bits.
_LARGEST_EXPONENT = 20


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelScale(Transform):
    """Factors s of the channels between two layers: the first one's output / s, the second one's weight * s.

    Factors are powers of two, so every product of the two stays the same number, and so does every sum: the model
    computes the same bits, but where a number would leave float32 or lose bits below 2**-126.

    Args:
      factors: [channels] float32, powers of two.
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

    def is_exact(self, array: Array, *, axis: int) -> bool:
        """Returns whether no value loses a bit when it is divided along an axis."""
        along = namespace(array, self.factors).reshape(self.factors, _along(axis, array.ndim))
        return same_array((array / along) * along, array) and _finite(array / along)

    def is_exact_in(self, weight: Array, *, axis: int, groups: int = 1) -> bool:
        """Returns whether no weight loses a bit in ``take``."""
        xp = namespace(weight, self.factors)
        taken = self.take(weight, axis=axis, groups=groups)
        back = ChannelScale(factors=xp.ones_like(self.factors) / self.factors).take(taken, axis=axis, groups=groups)
        return _finite(taken) and same_array(back, weight)


def _finite(array: Array) -> bool:
    xp = namespace(array)
    return bool(xp.all(xp.isfinite(array)))


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if i == axis % rank else 1 for i in range(rank))


def powers_of_two(values: Array) -> Array:
    """Returns the power of two nearest to each value by its logarithm, float32, between 2**-20 and 2**20.

    From the bits of the number, the same in every library. Args: values > 0, float32.

    >>> import numpy as np
    >>> powers_of_two(np.array([1.0, 1.41, 1.42, 3.0, 0.3], np.float32)).tolist()
    [1.0, 1.0, 2.0, 4.0, 0.25]
    """
    xp = namespace(values)
    inside = xp.clip(xp.astype(values, xp.float32), 2.0**-_LARGEST_EXPONENT, 2.0**_LARGEST_EXPONENT)
    bits = bits_of(inside)
    up = xp.astype(xp.bitwise_and(bits, (1 << _MANTISSA) - 1) >= _ROOT_OF_TWO, xp.int32)
    return floats_of(xp.bitwise_left_shift(xp.bitwise_right_shift(bits, _MANTISSA) + up, _MANTISSA))


def grouped(weight: Array, *, axis: int, groups: int = 1) -> Array:
    """Returns a weight as [groups, outputs of a group, inputs of a group, taps]."""
    xp = namespace(weight)
    rows = xp.permute_dims(weight, (1, 0)) if axis == 0 and weight.ndim == 2 else weight
    outputs, inputs = rows.shape[0], rows.shape[1]
    return xp.reshape(rows, (groups, outputs // groups, inputs, -1))
