"""Rounding to integers."""

from __future__ import annotations

from fewbits._base.arrays import Array, namespace


def round_half_even(values: Array) -> Array:
    """Returns the nearest integers, ties to the even one, in the dtype of the values.

    Source: IEEE 754-2019, 4.3.1 roundTiesToEven; ONNX QuantizeLinear asks for the same.

    >>> import numpy as np
    >>> round_half_even(np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=np.float32)).tolist()
    [-2.0, -2.0, -0.0, 0.0, 2.0, 2.0]
    """
    return namespace(values).round(values)
