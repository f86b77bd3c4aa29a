"""Array primitives: the only file that asks which array library an array belongs to.

Numerics, calibration and algorithms are written against the array API namespace that ``namespace`` returns.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import array_api_compat
import numpy as np

Array = Any  # an array of any library that speaks the array API; shapes stand in the docstrings


def namespace(*arrays: Array) -> Any:
    """Returns the array API namespace that the arrays share.

    >>> namespace(np.zeros(2)).__name__
    'array_api_compat.numpy'
    """
    return array_api_compat.array_namespace(*arrays)


def to_numpy(array: Array) -> np.ndarray:
    """Returns the array as NumPy, without a copy where its library allows."""
    return array if isinstance(array, np.ndarray) else np.asarray(array)


def freeze(array: Array) -> Array:
    """Returns the array, read-only where its library knows such a thing (values hold read-only arrays)."""
    if isinstance(array, np.ndarray) and array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


def ignore_overflow() -> AbstractContextManager[object]:
    """Returns a context in which a result that becomes infinite warns nobody; for steps that saturate right after.

    NumPy is the only library that warns; elsewhere the context does nothing.
    """
    return np.errstate(over="ignore")


def same_array(left: Array | None, right: Array | None) -> bool:
    """Returns whether dtype, shape and every bit of two arrays are equal (NaN equals the same NaN)."""
    if left is None or right is None:
        return left is right
    a, b = to_numpy(left), to_numpy(right)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def exponent_above(amax: float) -> int:
    """Returns the smallest e with |amax| < 2**e; exact, by frexp and never by log2.

    >>> exponent_above(1.0), exponent_above(0.75), exponent_above(4.0)
    (1, 0, 3)
    """
    return int(np.frexp(np.float64(amax))[1])
