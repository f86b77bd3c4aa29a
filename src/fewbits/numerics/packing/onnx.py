"""ONNX: what DequantizeLinear reads. Codes of fewer than 8 bits are packed over the flat order of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import NumericsError
from fewbits._base.packing import as_floats, as_patterns, laid_out, pack_bits, packed_length, unpack_bits
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor, PerToken
from fewbits.numerics.packing._parts import (
    DTYPES,
    checked_codes,
    no_scheme,
    no_shape,
    other_symmetry,
    put_together,
    scale_format,
    stored_values,
    take,
    values_of,
    whole_zero_points,
)
from fewbits.numerics.packing.base import Layout
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.scheme import Scheme

_NAME = "onnx"
_ZERO = "x_zero_point"
# Formats of codes: the name in TensorProto.DataType, and the opset from which DequantizeLinear reads it, in blocks.
_CODES = {
    "int2": ("INT2", 25),
    "uint2": ("UINT2", 25),
    "int4": ("INT4", 21),
    "uint4": ("UINT4", 21),
    "int8": ("INT8", 21),
    "uint8": ("UINT8", 21),
    "int16": ("INT16", 21),
    "uint16": ("UINT16", 21),
    "int32": ("INT32", 21),
    "fp8_e4m3": ("FLOAT8E4M3FN", 21),
    "ue4m3": ("FLOAT8E4M3FN", 21),  # the same patterns, without those of negative numbers
    "fp8_e5m2": ("FLOAT8E5M2", 21),
    "fp4_e2m1": ("FLOAT4E2M1", 23),
}
_SCALES = {"fp32": ("FLOAT", 21), "fp16": ("FLOAT16", 21), "bf16": ("BFLOAT16", 21), "e8m0": ("FLOAT8E8M0", 24)}


def element_type(fmt: Format) -> str:
    """Returns how TensorProto.DataType calls a format of codes or scales, e.g. ``INT4``.

    Raises: NumericsError(slug="no-element-type") for a format that ONNX has not.
    """
    return _entry(fmt)[0]


def opset_of(scheme: Scheme) -> int:
    """Returns the first opset whose DequantizeLinear reads a scheme."""
    return max(_entry(scheme.format)[1], _entry(scale_format(scheme))[1])


def _entry(fmt: Format) -> tuple[str, int]:
    found = _CODES.get(fmt.name) or _SCALES.get(fmt.name)
    if found is None:
        raise NumericsError(
            f"ONNX has no element type for {fmt.name}; it has {', '.join((*_CODES, *_SCALES))}", slug="no-element-type"
        )
    return found


@final
@dataclass(frozen=True, slots=True)
class Onnx(Layout):
    """The three inputs of DequantizeLinear: ``x``, ``x_scale``, and ``x_zero_point`` where there is one.

    y = (x - x_zero_point) * x_scale. The tensor may have any rank and is not turned: an axis of the scheme is the axis
    of the operator. Two codes of 4 bits, or four of 2, share a byte, lowest bits first, over the flat C order, so that
    a row may begin inside a byte. Codes of 8 bits and more are plain arrays.

    Source: ONNX operators DequantizeLinear-21, -23, -24, -25; onnx.proto, TensorProto.raw_data.
    """

    @property
    def name(self) -> str:
        return _NAME

    @property
    def reader(self) -> str:
        return "ONNX: DequantizeLinear, opset 21 and newer"

    def check(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        fmt = scheme.format
        if fmt.name not in _CODES:
            raise no_scheme(_NAME, scheme, f"ONNX has no element type for {fmt.name}", f"use {_near(fmt)}")
        if not scheme.scaled or isinstance(scheme.scale, Scheme) or scale_format(scheme).name not in _SCALES:
            raise no_scheme(
                _NAME,
                scheme,
                "DequantizeLinear has one scale, of " + ", ".join(_SCALES),
                f"use {fmt.name}-g32, or pack the scales by themselves for a second DequantizeLinear",
            )
        if scheme.minimum is not None or not isinstance(scheme.zero_point, Int | None):
            raise no_scheme(_NAME, scheme, "its zero points have the type of the codes", "use uint4-g32-asym")
        if fmt.name == "int32" and not scheme.symmetric:
            raise no_scheme(_NAME, scheme, "int32 has no zero point in ONNX", "use a symmetric scheme")
        if 0 in shape or not shape:
            raise no_shape(_NAME, shape, "it has no axis or no element", "give an array with both")
        _scale_shape(scheme, shape)

    def pack(self, q: QTensor) -> dict[str, Array]:
        scheme = q.scheme
        self.check(scheme, q.shape)
        assert not isinstance(q.scale, QTensor), "refused above"
        xp = namespace(q.codes)
        shape = _scale_shape(scheme, q.shape)
        scale = stored_values(_NAME, q.scale, scale_format(scheme))
        tensors = {"x": _packed(checked_codes(q), scheme.format), "x_scale": laid_out(xp.reshape(scale, shape))}
        if isinstance(scheme.format, Int):
            zero = whole_zero_points(_NAME, q)
            if _has_zero_point(scheme):
                tensors[_ZERO] = _packed(xp.reshape(zero, shape), scheme.format)
            elif bool(xp.any(zero != 0)):
                raise no_scheme(_NAME, scheme, "it is symmetric, and a zero point is not 0", "quantize the tensor anew")
        return tensors

    def unpack(self, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        self.check(scheme, shape)
        fmt, scales = scheme.format, scale_format(scheme)
        outer = _scale_shape(scheme, shape)
        scale = values_of(take(_NAME, tensors, "x_scale", DTYPES[scales.name], outer), scales)
        zero = None
        if isinstance(fmt, Int) and (_has_zero_point(scheme) or _ZERO in tensors):
            zero = fmt.decode(_unpacked(tensors, _ZERO, fmt, outer))
            if not _has_zero_point(scheme) and bool(namespace(zero).any(zero != 0)):
                raise other_symmetry(_NAME, _ZERO)
        return put_together(_unpacked(tensors, "x", fmt, shape), scheme, scale, zero)


def _near(fmt: Format) -> str:
    """Returns the narrowest integer format of ONNX that is not narrower."""
    unsigned = isinstance(fmt, Int) and not fmt.signed
    bits = next((b for b in (2, 4, 8, 16) if b >= fmt.stored_bits), 16)
    return f"{'u' if unsigned else ''}int{bits}"


def _has_zero_point(scheme: Scheme) -> bool:
    """Returns whether zero points are written: absent, they are 0, which the middle of unsigned codes is not."""
    return isinstance(scheme.format, Int) and (not scheme.symmetric or not scheme.format.signed)


def _scale_shape(scheme: Scheme, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that DequantizeLinear wants: () for one scale, [C] for channels, all axes for blocks."""
    whole = scheme.granularity.scale_shape(shape)
    match scheme.granularity:
        case PerTensor():
            return ()
        case PerChannel(axis=axis):
            return (shape[axis],)
        case PerToken() if len(shape) == 2:
            return (max(whole),)
        case PerGroup():
            return whole
    raise no_scheme(
        _NAME,
        scheme,
        "DequantizeLinear has a scale a tensor, a scale an index of one axis, or blocks along one axis",
        f"use {scheme.format.name}-g128 or {scheme.format.name}-channel",
    )


def _bits(fmt: Format) -> int:
    """Returns how many bits a code takes in the file; ue4m3 leaves its top bit unused."""
    return 8 if fmt.name == "ue4m3" else fmt.stored_bits


def _packed(codes: Array, fmt: Format) -> Array:
    xp = namespace(codes)
    if _bits(fmt) < 8:
        return pack_bits(xp.reshape(codes, (-1,)), _bits(fmt))
    codes = laid_out(xp.astype(codes, getattr(xp, fmt.code_dtype)))
    return codes if isinstance(fmt, Int) else as_floats(codes, DTYPES[fmt.name])


def _unpacked(tensors: Mapping[str, Array], name: str, fmt: Format, shape: tuple[int, ...]) -> Array:
    count, bits = prod(shape), _bits(fmt)
    if bits < 8:
        packed = take(_NAME, tensors, name, "uint8", (packed_length(count, bits),))
        signed = isinstance(fmt, Int) and fmt.signed
        return namespace(packed).reshape(unpack_bits(packed, bits, count, signed=signed), shape)
    found = take(_NAME, tensors, name, DTYPES.get(fmt.name, fmt.code_dtype), shape)
    return found if isinstance(fmt, Int) else as_patterns(found)


# The formats of the table above are all of the catalog.
assert {*_CODES, *_SCALES} <= set(FORMATS)

LAYOUT: Layout = Onnx()
