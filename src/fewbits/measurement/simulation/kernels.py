"""One function for each integer kernel of ONNX Runtime: outputs from inputs, by the operator's definition alone.

Where an output holds codes, values are real numbers to the last step (float64) and are rounded once, half to even.
Where it holds floats, a bound says how far float32 arithmetic, in any order, may lie from them.

Sources: ONNX operator specifications (QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, QLinearConv,
QLinearMatMul, MatMulInteger); for the others ONNX Runtime's documentation of its operators (docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fewbits.measurement.simulation.arithmetic import (
    UNIT,
    along,
    convolve,
    ends,
    offsets,
    pads_of,
    scalar,
    to_codes,
    windows,
)
from fewbits.measurement.simulation.blocks import block_product

Attributes = dict[str, Any]
Inputs = Sequence["np.ndarray | None"]


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulated:
    """One output as it must be.

    Args:
      values: int64 codes, or float64 values.
      steps: Of codes that were rounded, the values in steps before; None for others.
      tolerance: How far float32 arithmetic may lie from the values, by element or for all; None for codes.
    """

    values: np.ndarray
    tolerance: np.ndarray | None = None
    steps: np.ndarray | None = None


Kernel = Callable[[Inputs, Attributes], Simulated]


def _given(inputs: Inputs, index: int) -> np.ndarray:
    value = inputs[index] if index < len(inputs) else None
    assert value is not None, f"input {index} is required"
    return value


def _optional(inputs: Inputs, index: int) -> np.ndarray | None:
    return inputs[index] if index < len(inputs) else None


def _zero(inputs: Inputs, index: int, dtype: Any = np.uint8) -> np.ndarray:
    value = _optional(inputs, index)
    return np.zeros((), dtype) if value is None else value


def _coded(steps: np.ndarray, zero: np.ndarray, dtype: np.dtype) -> Simulated:
    return Simulated(values=to_codes(steps, zero, dtype), steps=steps)


def _quantize(inputs: Inputs, attributes: Attributes) -> Simulated:
    x, scale, zero = _given(inputs, 0), _given(inputs, 1), _zero(inputs, 2)
    axis = int(attributes.get("axis", 1))
    # The quotient is that of the specification, in the numbers of the input: a quotient of float32 is a float32.
    steps = x / along(scale.astype(x.dtype), axis, x.ndim)
    return _coded(steps.astype(np.float64), along(zero, axis, x.ndim), zero.dtype)


def _dequantize(inputs: Inputs, attributes: Attributes) -> Simulated:
    codes, scale = _given(inputs, 0), _given(inputs, 1)
    zero = _zero(inputs, 2, codes.dtype)
    axis = int(attributes.get("axis", 1))
    values = offsets(codes, zero, axis=axis) * along(scale.astype(np.float64), axis, codes.ndim)
    return Simulated(values=values, tolerance=UNIT * np.abs(values))  # one product, rounded once


def _convolution(inputs: Inputs, attributes: Attributes) -> Simulated:
    """QLinearConv: x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias; channels last where it says so."""
    x, w, y_zero = _given(inputs, 0), _given(inputs, 3), _given(inputs, 7)
    last = bool(attributes.get("channels_last", 0))
    wide = offsets(x, _given(inputs, 2))
    wide = np.moveaxis(wide, -1, 1) if last else wide
    space, kernel = wide.shape[2:], w.shape[2:]
    strides = tuple(attributes.get("strides") or [1] * len(space))
    dilations = tuple(attributes.get("dilations") or [1] * len(space))
    pads = pads_of(attributes, space, kernel, strides, dilations)
    padded = np.pad(wide, [(0, 0), (0, 0), *pads])  # a padded place has the value 0
    sums = convolve(padded, offsets(w, _given(inputs, 5)), strides, dilations, int(attributes.get("group", 1)))
    bias = _optional(inputs, 8)
    if bias is not None:
        sums += along(bias.astype(np.float64), 1, sums.ndim)
    weight_scale = along(_given(inputs, 4).astype(np.float64), 1, sums.ndim)
    steps = sums * (scalar(_given(inputs, 1)) * weight_scale / scalar(_given(inputs, 6)))
    return _coded(np.moveaxis(steps, 1, -1) if last else steps, y_zero.reshape(-1)[0], y_zero.dtype)


def _product(a: np.ndarray, a_zero: np.ndarray, b: np.ndarray, b_zero: np.ndarray) -> np.ndarray:
    """Returns the sums of a matrix product on codes; b's zero points, where there are several, are by column."""
    return np.asarray(offsets(a, a_zero, axis=a.ndim - 2) @ offsets(b, b_zero, axis=b.ndim - 1))


def _linear_matmul(inputs: Inputs, attributes: Attributes) -> Simulated:
    a, b, y_zero = _given(inputs, 0), _given(inputs, 3), _given(inputs, 7)
    sums = _product(a, _given(inputs, 2), b, _given(inputs, 5))
    scale = scalar(_given(inputs, 1)) * along(_given(inputs, 4).astype(np.float64), sums.ndim - 1, sums.ndim)
    steps = sums * (scale / scalar(_given(inputs, 6)))
    return _coded(steps, y_zero.reshape(-1)[0], y_zero.dtype)


def _gemm(inputs: Inputs, attributes: Attributes) -> Simulated:
    """QGemm: a, a_scale, a_zero, b, b_scale, b_zero, c (int32), y_scale, y_zero; floats come out without the last."""
    a, b = _given(inputs, 0), _given(inputs, 3)
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    sums = _product(a, _given(inputs, 2), b, _given(inputs, 5))
    bias = _optional(inputs, 6)
    sums = sums if bias is None else sums + bias.astype(np.float64)
    scale = scalar(_given(inputs, 1)) * along(_given(inputs, 4).astype(np.float64), 1, 2)
    scale = scale * float(attributes.get("alpha", 1.0))
    y_scale = _optional(inputs, 7)
    if y_scale is None:
        return _restored(sums, scale, None)
    y_zero = _given(inputs, 8)
    return _coded(sums * (scale / scalar(y_scale)), y_zero.reshape(-1)[0], y_zero.dtype)


def _restored(sums: np.ndarray, scale: np.ndarray, bias: np.ndarray | None) -> Simulated:
    """Returns sums as floats; float32 rounds the sum, the two scales' product, theirs, and the bias' addition."""
    values = sums * scale
    size = np.abs(values)
    if bias is not None:
        values = values + bias.astype(np.float64)
        size = size + np.abs(bias.astype(np.float64))
    return Simulated(values=values, tolerance=4 * UNIT * size)


def _integer_to_float(inputs: Inputs, attributes: Attributes) -> Simulated:
    """MatMulIntegerToFloat: a, b, a_scale, b_scale, a_zero, b_zero, bias."""
    a, b = _given(inputs, 0), _given(inputs, 1)
    sums = _product(a, _zero(inputs, 4, a.dtype), b, _zero(inputs, 5, b.dtype))
    scale = scalar(_given(inputs, 2)) * along(_given(inputs, 3).astype(np.float64), sums.ndim - 1, sums.ndim)
    return _restored(sums, scale, _optional(inputs, 6))


def _dynamic(x: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Returns codes, scale and zero point of DynamicQuantizeLinear: one scale for the whole tensor, in float32."""
    low, high = np.float32(min(0.0, x.min(initial=0.0))), np.float32(max(0.0, x.max(initial=0.0)))
    scale = np.float32(1) if low == high else (high - low) / np.float32(255)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    codes = to_codes((x / scale).astype(np.float64), np.asarray(zero), np.dtype(np.uint8))
    return codes, float(scale), np.asarray(zero)


def _dynamic_matmul(inputs: Inputs, attributes: Attributes) -> Simulated:
    """DynamicQuantizeMatMul: x (float), b, b_scale, b_zero, bias."""
    x, b = _given(inputs, 0), _given(inputs, 1)
    codes, scale, zero = _dynamic(x)
    sums = _product(codes, zero, b, _zero(inputs, 3, b.dtype))
    by_column = along(_given(inputs, 2).astype(np.float64), sums.ndim - 1, sums.ndim)
    return _restored(sums, scale * by_column, _optional(inputs, 4))


def _matmul_integer(inputs: Inputs, attributes: Attributes) -> Simulated:
    a, b = _given(inputs, 0), _given(inputs, 1)
    sums = _product(a, _zero(inputs, 2, a.dtype), b, _zero(inputs, 3, b.dtype))
    return Simulated(values=sums.astype(np.int64))


def _pair(inputs: Inputs, join: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Simulated:
    """Operators of two quantized operands: a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero."""
    left, right = (offsets(_given(inputs, i), _zero(inputs, i + 2)) * scalar(_given(inputs, i + 1)) for i in (0, 3))
    zero = _zero(inputs, 7, _given(inputs, 0).dtype)
    return _coded(join(left, right) / scalar(_given(inputs, 6)), zero.reshape(-1)[0], zero.dtype)


def _one(inputs: Inputs, function: Callable[[np.ndarray], np.ndarray]) -> Simulated:
    """Operators of one quantized operand: x, x_scale, x_zero, y_scale, y_zero."""
    values = offsets(_given(inputs, 0), _zero(inputs, 2)) * scalar(_given(inputs, 1))
    zero = _zero(inputs, 4, _given(inputs, 0).dtype)
    return _coded(function(values) / scalar(_given(inputs, 3)), zero.reshape(-1)[0], zero.dtype)


def _leaky(inputs: Inputs, attributes: Attributes) -> Simulated:
    alpha = float(np.float32(attributes.get("alpha", 0.01)))
    return _one(inputs, lambda values: np.where(values < 0, alpha * values, values))


def _sigmoid(inputs: Inputs, attributes: Attributes) -> Simulated:
    return _one(inputs, lambda values: 1 / (1 + np.exp(-values)))


def _global_pool(inputs: Inputs, attributes: Attributes) -> Simulated:
    last = bool(attributes.get("channels_last", 0))
    rank = _given(inputs, 0).ndim
    axes = tuple(range(1, rank - 1)) if last else tuple(range(2, rank))
    return _one(inputs, lambda values: np.asarray(values.mean(axis=axes, keepdims=True)))


def _concat(inputs: Inputs, attributes: Attributes) -> Simulated:
    """QLinearConcat: y_scale, y_zero, then (x, x_scale, x_zero) for each part."""
    zero = _given(inputs, 1)
    parts = [
        offsets(_given(inputs, i), _given(inputs, i + 2)) * scalar(_given(inputs, i + 1))
        for i in range(2, len(inputs), 3)
    ]
    steps = np.concatenate(parts, axis=int(attributes["axis"])) / scalar(_given(inputs, 0))
    return _coded(steps, zero.reshape(-1)[0], zero.dtype)


def _where(inputs: Inputs, attributes: Attributes) -> Simulated:
    """QLinearWhere: condition, x, x_scale, x_zero, y, y_scale, y_zero, z_scale, z_zero."""
    left, right = (offsets(_given(inputs, i), _given(inputs, i + 2)) * scalar(_given(inputs, i + 1)) for i in (1, 4))
    zero = _given(inputs, 8)
    steps = np.where(_given(inputs, 0), left, right) / scalar(_given(inputs, 7))
    return _coded(steps, zero.reshape(-1)[0], zero.dtype)


def _max_pool(inputs: Inputs, attributes: Attributes, *, last: bool = False) -> Simulated:
    x = _given(inputs, 0)
    low, _ = ends(x.dtype)
    wide = np.moveaxis(x, -1, 1) if last else x
    kernel = tuple(attributes["kernel_shape"])
    strides = tuple(attributes.get("strides") or [1] * len(kernel))
    dilations = tuple(attributes.get("dilations") or [1] * len(kernel))
    pads = pads_of(attributes, wide.shape[2:], kernel, strides, dilations)
    if attributes.get("ceil_mode", 0):
        pads = [
            (before, after + (-(size + before + after - (k - 1) * d - 1)) % s)
            for (before, after), size, k, s, d in zip(pads, wide.shape[2:], kernel, strides, dilations, strict=True)
        ]
    padded = np.pad(wide.astype(np.int64), [(0, 0), (0, 0), *pads], constant_values=low)
    seen = windows(padded, kernel, strides, dilations)
    found = seen.max(axis=tuple(range(2 + len(kernel), seen.ndim)))
    return Simulated(values=np.moveaxis(found, 1, -1) if last else found)


def _in_blocks(inputs: Inputs, attributes: Attributes) -> Simulated:
    """MatMulNBits: a, b, scales, zero_points, g_idx, bias."""
    values, tolerance = block_product(
        _given(inputs, 0),
        _given(inputs, 1),
        _given(inputs, 2),
        _optional(inputs, 3),
        _optional(inputs, 5),
        columns=int(attributes["N"]),
        bits=int(attributes.get("bits", 4)),
        size=int(attributes["block_size"]),
        level=int(attributes.get("accuracy_level", 0)),
    )
    return Simulated(values=values, tolerance=tolerance)


KERNELS: Mapping[str, Kernel] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QLinearConv": _convolution,
    "QLinearMatMul": _linear_matmul,
    "QGemm": _gemm,
    "MatMulIntegerToFloat": _integer_to_float,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulInteger": _matmul_integer,
    "QLinearAdd": lambda inputs, attributes: _pair(inputs, np.add),
    "QLinearMul": lambda inputs, attributes: _pair(inputs, np.multiply),
    "QLinearLeakyRelu": _leaky,
    "QLinearSigmoid": _sigmoid,
    "QLinearGlobalAveragePool": _global_pool,
    "QLinearConcat": _concat,
    "QLinearWhere": _where,
    "MatMulNBits": _in_blocks,
    "MaxPool": _max_pool,
    "NhwcMaxPool": lambda inputs, attributes: _max_pool(inputs, attributes, last=True),
}


def simulate(kernel: str, inputs: Inputs, attributes: Attributes) -> Simulated | None:
    """Returns the first output of a kernel as it must be; None for a kernel that is not known here.

    Args:
      kernel: Operator, without its domain.
      inputs: In the operator's order, None where one is left out.
      attributes: As the node has them.
    """
    found = KERNELS.get(kernel)
    return None if found is None else found(inputs, attributes)
