"""Exact arithmetic on codes: dequantize, quantize, requantize, products of integers."""

from __future__ import annotations

import numpy as np

# Half the distance between 1 and the next float32: what one rounding costs, relative to the result.
UNIT = 2.0**-24


def ends(dtype: np.dtype) -> tuple[int, int]:
    """Returns the lowest and the highest code of an integer type."""
    found = np.iinfo(dtype)
    return int(found.min), int(found.max)


def along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Returns parameters, one for all or one a channel, in a shape that broadcasts along an axis."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * rank
    shape[axis] = values.size
    return values.reshape(shape)


def offsets(codes: np.ndarray, zero_point: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Returns codes without their zero point, as float64: integers of 33 bits are exact in it, and so are their sums.

    Args:
      codes: Integers.
      zero_point: One for all, or one a channel.
      axis: Of the channels.
    """
    return np.asarray(codes.astype(np.float64) - along(zero_point.astype(np.float64), axis, codes.ndim))


def to_codes(values: np.ndarray, zero_point: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns values, in steps, as codes: rounded half to even, the zero point added, saturated; int64.

    Source: ONNX QuantizeLinear, saturate(round(x / scale) + zero_point).
    """
    low, high = ends(dtype)
    codes = np.clip(np.rint(values) + zero_point.astype(np.float64), low, high)
    return np.asarray(codes.astype(np.int64))


def scalar(values: np.ndarray) -> float:
    """Returns a parameter that all share, as Python float: exact in float64."""
    return float(values.reshape(-1)[0])


def windows(
    values: np.ndarray, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> np.ndarray:
    """Returns a view of every window of padded maps: [n, c, *places, *kernel]."""
    spatial = tuple(range(2, values.ndim))
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(values, reach, axis=spatial)
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    return seen[(*steps, *(slice(None, None, d) for d in dilations))]


def convolve(
    x: np.ndarray, w: np.ndarray, strides: tuple[int, ...], dilations: tuple[int, ...], group: int
) -> np.ndarray:
    """Returns the convolution of padded maps, exactly: float64 sums of integers below 2**53 do not round.

    Args:
      x: [n, c, *space], padded, integers in float64.
      w: [m, c / group, *kernel], integers in float64.
      strides: By axis of space.
      dilations: By axis of space.
      group: Groups of channels.
    Returns: [n, m, *places].
    """
    kernel = w.shape[2:]
    seen = windows(x, kernel, strides, dilations)
    places = seen.shape[2 : 2 + len(kernel)]
    n, per_in, per_out = x.shape[0], w.shape[1], w.shape[0] // group
    if per_in == 1 and per_out == 1:  # depthwise: a sum over the kernel alone
        letters = "abcdef"[: len(kernel)]
        kept = "uvwxyz"[: len(kernel)]
        return np.asarray(np.einsum(f"nm{kept}{letters},m{letters}->nm{kept}", seen, w[:, 0], optimize=False))
    out = np.empty((n, w.shape[0], *places))
    order = (0, *range(2, 2 + len(kernel)), 1, *range(2 + len(kernel), 2 + 2 * len(kernel)))
    for one in range(group):
        part = seen[:, one * per_in : (one + 1) * per_in].transpose(order)
        filters = w[one * per_out : (one + 1) * per_out].reshape(per_out, -1)
        product = part.reshape(-1, filters.shape[1]) @ filters.T
        out[:, one * per_out : (one + 1) * per_out] = np.moveaxis(product.reshape(n, *places, per_out), -1, 1)
    return out


def pads_of(
    attributes: dict[str, object],
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> list[tuple[int, int]]:
    """Returns how many places stand before and behind each axis of space: as written, or as ``auto_pad`` asks."""
    auto = attributes.get("auto_pad", b"NOTSET")
    word = auto.decode() if isinstance(auto, bytes) else str(auto)
    if word == "VALID":
        return [(0, 0)] * len(space)
    if word.startswith("SAME"):
        found = []
        for size, k, s, d in zip(space, kernel, strides, dilations, strict=True):
            whole = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
            less, more = whole // 2, whole - whole // 2
            found.append((less, more) if word == "SAME_UPPER" else (more, less))
        return found
    given = attributes.get("pads") or [0] * (2 * len(space))
    pads = [int(p) for p in given]  # type: ignore[attr-defined]
    return list(zip(pads[: len(space)], pads[len(space) :], strict=True))
