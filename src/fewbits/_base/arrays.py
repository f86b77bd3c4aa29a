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


def is_numpy(array: Array) -> bool:
    """Returns whether the array is NumPy's."""
    return isinstance(array, np.ndarray | np.generic)


def device_of(array: Array) -> Any:
    """Returns where the array lies, in the words of its library."""
    return array_api_compat.device(array)


def like(constant: np.ndarray, array: Array) -> Array:
    """Returns a NumPy constant in the library, and on the device, of an array."""
    if is_numpy(array):
        return constant
    return namespace(array).asarray(np.array(constant), device=device_of(array))


def bits_of(values: Array) -> Array:
    """Returns the bit patterns of float32 values, as int32 of the same shape.

    >>> hex(int(bits_of(np.array(1.0, dtype=np.float32))))
    '0x3f800000'
    """
    if array_api_compat.is_torch_array(values):
        return values.view(namespace(values).int32)
    return like(np.asarray(to_numpy(values)).view(np.int32), values)


def floats_of(bits: Array) -> Array:
    """Returns the float32 values that int32 bit patterns stand for; the inverse of ``bits_of``."""
    if array_api_compat.is_torch_array(bits):
        return bits.view(namespace(bits).float32)
    return like(np.asarray(to_numpy(bits)).view(np.float32), bits)


def look_up(table: np.ndarray, codes: Array) -> Array:
    """Returns ``table[codes]`` in the library of the codes, any shape; codes are integers in [0, len(table))."""
    if is_numpy(codes):
        return table[codes]
    xp = namespace(codes)
    flat = xp.astype(xp.reshape(codes, (-1,)), xp.int64)
    return xp.reshape(xp.take(like(table, codes), flat), codes.shape)


def round_in_place(values: Array) -> Array:
    """Returns the nearest integers, ties to even, in the memory of the values where their library can."""
    if isinstance(values, np.ndarray):
        return np.rint(values, out=values)
    if array_api_compat.is_torch_array(values):
        return values.round_()
    return namespace(values).round(values)


def clip_in_place(values: Array, low: float, high: float) -> Array:
    """Returns the values drawn into [low, high], in their own memory where their library can."""
    if isinstance(values, np.ndarray):
        return np.clip(values, low, high, out=values)
    if array_api_compat.is_torch_array(values):
        return values.clamp_(low, high)
    return namespace(values).clip(values, low, high)


def uniform(shape: tuple[int, ...], *, seed: tuple[int, ...], like_array: Array) -> Array:
    """Returns float32 numbers in [0, 1), the same for a seed in every library (drawn by NumPy's Philox)."""
    drawn = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed))).random(shape, dtype=np.float32)
    return like(drawn, like_array)


def detached(values: Array) -> Array:
    """Returns the values without a record of how they were computed (torch's autograd)."""
    return values.detach() if array_api_compat.is_torch_array(values) else values


def empty_like(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """Returns an array of this shape and dtype, its contents undefined, in the library and on the device of another."""
    xp = namespace(array)
    return xp.empty(shape, dtype=getattr(xp, dtype), device=device_of(array))


# NumPy reduces the last axis row by row: below so many elements a row, its overhead outweighs the work.
_LONG_ROW = 1024
# Up to here, reducing the transposed copy down its columns beats ``reduceat`` (measured, AVX512).
_SHORT_ROW = 64


def extremes(values: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Returns the smallest and the largest value along axes, which keep size 1; NaN where there is one."""
    xp = namespace(values)
    rows = _short_rows(values, axes)
    if rows is None:
        return xp.min(values, axis=axes, keepdims=True), xp.max(values, axis=axes, keepdims=True)
    shape = tuple(1 if i in axes else size for i, size in enumerate(values.shape))
    if rows.shape[1] <= _SHORT_ROW:
        columns = np.ascontiguousarray(rows.T)
        return columns.min(axis=0).reshape(shape), columns.max(axis=0).reshape(shape)
    starts = np.arange(0, rows.size, rows.shape[1])
    low, high = np.minimum.reduceat(rows.reshape(-1), starts), np.maximum.reduceat(rows.reshape(-1), starts)
    return low.reshape(shape), high.reshape(shape)


def largest_magnitude(values: Array, axes: tuple[int, ...]) -> Array:
    """Returns the largest magnitude along axes, which keep size 1; NaN where there is one."""
    xp = namespace(values)
    rows = _short_rows(values, axes)
    if rows is None:
        low, high = extremes(values, axes)
        return xp.maximum(-low, high)
    shape = tuple(1 if i in axes else size for i, size in enumerate(values.shape))
    sizes = np.abs(rows)
    if rows.shape[1] <= _SHORT_ROW:
        return np.ascontiguousarray(sizes.T).max(axis=0).reshape(shape)
    return np.maximum.reduceat(sizes.reshape(-1), np.arange(0, rows.size, rows.shape[1])).reshape(shape)


def _short_rows(values: Array, axes: tuple[int, ...]) -> np.ndarray | None:
    """Returns the values as [groups, size] where NumPy's own reduction of that last axis is slow; else None."""
    if not isinstance(values, np.ndarray) or len(axes) != 1 or not values.flags.c_contiguous:
        return None
    size = values.shape[axes[0]]
    if size >= _LONG_ROW or values.shape[axes[0] + 1 :] not in ((), (1,)):
        return None
    return values.reshape(-1, size)


def ordered_sum(values: Array, axes: tuple[int, ...]) -> Array:
    """Returns the sums along axes, which keep size 1, added in one order in every library: halves onto halves.

    >>> ordered_sum(np.array([[1.0, 2.0, 3.0]]), (1,)).tolist()
    [[6.0]]
    """
    xp = namespace(values)
    for axis in axes:
        while (size := values.shape[axis]) > 1:
            half = size // 2
            first = tuple(slice(0, half) if i == axis else slice(None) for i in range(values.ndim))
            second = tuple(slice(half, 2 * half) if i == axis else slice(None) for i in range(values.ndim))
            rest = tuple(slice(2 * half, size) if i == axis else slice(None) for i in range(values.ndim))
            folded = values[first] + values[second]
            values = xp.concat([folded, values[rest]], axis=axis) if size % 2 else folded
    return values
