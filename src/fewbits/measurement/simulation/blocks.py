"""MatMulNBits: products with weights in blocks, where activations are rounded to 8 bits inside or left as they are."""

from __future__ import annotations

import numpy as np

from fewbits.measurement.simulation.arithmetic import UNIT

# From this accuracy level on activations are rounded to 8 bits, a scale for each row and block; below they are floats.
_ROUNDED_LEVEL = 4
_LARGEST = 127
# Roundings of a term besides its addition: two scales, their product with the sum, that sum, and a zero point's part.
_ROUNDINGS = 8


def unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Returns codes of a few bits from bytes, the lowest bits first; [..., count] int64."""
    shifts = np.arange(0, 8, bits)
    codes = (packed[..., None].astype(np.int64) >> shifts) & (2**bits - 1)
    return np.asarray(codes.reshape(*packed.shape[:-1], -1)[..., :count])


def block_product(
    a: np.ndarray,
    b: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None,
    bias: np.ndarray | None,
    *,
    columns: int,
    bits: int,
    size: int,
    level: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a @ b.T with b in blocks, and how far float32 sums of its terms, in any order, may lie from it.

    At level 4 each block of a row of ``a`` is rounded to integers by amax / 127, half to even. The bound holds where
    zero points are taken off before the products or after, so it counts both parts.

    Args:
      a: [..., k] float32.
      b: [n, blocks, bytes of a block] uint8.
      scales: [n, blocks] or flat, float32.
      zero_points: [n, bytes of a row] uint8, packed like b; the middle of the codes where None.
      bias: [n], or None.
      columns: n.
      bits: Of a code.
      size: Elements of a block.
      level: The operator's accuracy_level.
    """
    blocks = b.shape[1]
    codes = unpacked(b.reshape(columns, blocks, -1), bits, size).astype(np.float64)
    zero = np.full((columns, blocks), 2.0 ** (bits - 1))
    if zero_points is not None:
        zero = unpacked(zero_points.reshape(columns, -1), bits, blocks).astype(np.float64)
    by_block = scales.astype(np.float64).reshape(columns, blocks)
    rows = a.astype(np.float32).reshape(-1, a.shape[-1])
    wide = np.zeros((len(rows), blocks * size), np.float32)
    wide[:, : rows.shape[1]] = rows
    parts = wide.reshape(len(rows), blocks, size)
    scale = np.ones((len(rows), blocks))
    if level >= _ROUNDED_LEVEL:
        amax = np.abs(parts).max(axis=2)
        step = amax / np.float32(_LARGEST)
        scale = step.astype(np.float64)
        parts = np.rint(np.divide(parts, step[..., None], out=np.zeros_like(parts), where=step[..., None] > 0))
    left = parts.astype(np.float64) * scale[..., None]
    right = (codes - zero[..., None]) * by_block[..., None]
    apart = (codes + zero[..., None]) * np.abs(by_block)[..., None]
    values = np.einsum("rbs,nbs->rn", left, right, optimize=True)
    size_of = np.einsum("rbs,nbs->rn", np.abs(left), apart, optimize=True)
    if bias is not None:
        values, size_of = values + bias, size_of + np.abs(bias)
    # At level 4 a block's sum is exact; else each of its products is added in float32.
    additions = blocks if level >= _ROUNDED_LEVEL else blocks * size
    shape = (*a.shape[:-1], columns)
    return values.reshape(shape), ((additions + _ROUNDINGS) * UNIT * size_of).reshape(shape)
