"""The formats of compressed-tensors: packed integers, plain 8-bit codes, and 4-bit floats under small scales."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from fewbits._base.arrays import Array, ignore_overflow, like, namespace
from fewbits._base.errors import NumericsError, TargetError
from fewbits._base.packing import as_floats, as_patterns, laid_out, pack_bits, packed_length, unpack_bits
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerBlock, PerGroup, PerTensor
from fewbits.numerics.packing._parts import (
    DTYPES,
    checked_codes,
    codes_of,
    group_size,
    need_integers,
    need_matrix,
    need_plain_order,
    need_scales,
    no_numbers,
    no_scheme,
    no_shape,
    other_symmetry,
    put_together,
    scale_format,
    stored_values,
    take,
    unsigned_codes,
    unsigned_zero_points,
    values_of,
    zero_points_of,
)
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scheme import Scheme

_WORD = 32
_ZERO = "weight_zero_point"
_SCALES = ("fp32", "bf16", "fp16")
# Widths whose packed layout is not the same in every version of compressed-tensors (before and since PR 732).
_MOVED_WIDTHS = (3, 5, 6, 7)


def invertible(q: QTensor) -> QTensor:
    """Returns an NVFP4 tensor whose tensor scale s is the reciprocal of a float32, as compressed-tensors stores it.

    s becomes 1 / (1 / s), both in float32: at most one place away, and its own result from then on. Codes stay.
    Tensors of other schemes are returned as they are.
    """
    inner = q.scale
    if not isinstance(inner, QTensor) or not _two_levels(q.scheme.scale):
        return q
    params = inner.params
    moved = QParams(scheme=params.scheme, scale=_reciprocal(_reciprocal(inner.scale)), zero_point=params.zero_point)
    scale = QTensor(codes=inner.codes, params=moved)
    return QTensor(codes=q.codes, params=QParams(scheme=q.scheme, scale=scale, zero_point=q.zero_point))


def _reciprocal(scale: Array) -> Array:
    xp = namespace(scale)
    with ignore_overflow():
        return xp.ones_like(scale) / scale


class Form(ABC):
    """One value of ``format`` in a compressed-tensors config."""

    __slots__ = ()

    @abstractmethod
    def check(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> None:
        """Raises TargetError for what the format cannot hold; ``name`` is the layout's, for messages."""

    @abstractmethod
    def pack(self, name: str, q: QTensor) -> dict[str, Array]:
        """Returns the tensors of a checked scheme and shape."""

    @abstractmethod
    def unpack(self, name: str, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        """Returns the quantized tensor of a checked scheme and shape."""


@final
@dataclass(frozen=True, slots=True)
class PackedIntegers(Form):
    """pack-quantized: unsigned codes in 32-bit words along each row; zero points too, along the other axis."""

    def check(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> None:
        bits = scheme.format.stored_bits
        if isinstance(scheme.format, Int) and bits in _MOVED_WIDTHS:
            raise no_scheme(
                name,
                scheme,
                f"how {bits} bits are packed changed between versions of compressed-tensors (PR 732)",
                f"use {'' if scheme.format.signed else 'u'}int{4 if bits == 3 else 8}",
            )
        need_integers(name, scheme, (2, 4, 8))
        need_scales(name, scheme, _SCALES)
        matrix = need_matrix(name, shape)
        _need_whole_groups(name, scheme, shape, group_size(name, scheme, matrix))

    def pack(self, name: str, q: QTensor) -> dict[str, Array]:
        fmt = q.scheme.format
        assert isinstance(fmt, Int) and not isinstance(q.scale, QTensor), "refused by check"
        xp = namespace(q.codes)
        tensors = {
            "weight_packed": pack_bits(unsigned_codes(q), fmt.bits, word=_WORD),
            "weight_scale": laid_out(stored_values(name, q.scale, scale_format(q.scheme))),
            "weight_shape": like(np.array(q.shape, dtype=np.int64), q.codes),
        }
        zero = _zero_points(name, q)
        if zero is not None:
            packed = pack_bits(xp.matrix_transpose(zero), fmt.bits, word=_WORD)
            tensors[_ZERO] = laid_out(xp.matrix_transpose(packed))
        return tensors

    def unpack(self, name: str, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        fmt = scheme.format
        assert isinstance(fmt, Int), "refused by check"
        rows, columns = shape
        packed = take(name, tensors, "weight_packed", "int32", (rows, packed_length(columns, fmt.bits, word=_WORD)))
        _refuse_other_shape(name, tensors, shape)
        if "weight_g_idx" in tensors:
            group = group_size(name, scheme, (rows, columns))
            need_plain_order(name, tensors, "weight_g_idx", columns, group)
        scales = scheme.granularity.scale_shape(shape)
        stored = scale_format(scheme)
        scale = values_of(take(name, tensors, "weight_scale", DTYPES[stored.name], scales), stored)
        codes = codes_of(unpack_bits(packed, fmt.bits, columns), fmt)
        if scheme.symmetric and _ZERO not in tensors:
            return put_together(codes, scheme, scale, _middle(scale, fmt))
        xp = namespace(packed)
        high = packed_length(rows, fmt.bits, word=_WORD)
        zero = take(name, tensors, _ZERO, "int32", (high, scales[1]))
        turned = unpack_bits(laid_out(xp.matrix_transpose(zero)), fmt.bits, rows)
        if scheme.symmetric and bool(xp.any(turned != 1 << (fmt.bits - 1))):
            raise other_symmetry(name, _ZERO)
        return put_together(codes, scheme, scale, zero_points_of(laid_out(xp.matrix_transpose(turned)), fmt))


@final
@dataclass(frozen=True, slots=True)
class PlainCodes(Form):
    """int-quantized, float-quantized and mxfp8-quantized: codes of 8 bits as a plain matrix.

    Args:
      codes: The format of the codes: int8 or fp8_e4m3.
      exponents: Whether scales are E8M0 bytes for groups of 32.
    """

    codes: Format
    exponents: bool = False

    def check(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> None:
        need_matrix(name, shape)
        instead = "use mxfp8" if self.exponents else f"use {self.codes.name}-channel"
        if isinstance(self.codes, Int):
            need_integers(name, scheme, (8,))
        elif scheme.format != self.codes:
            raise no_scheme(name, scheme, f"its codes are {self.codes.name}", instead)
        if isinstance(scheme.scale, Scheme) or not scheme.scaled:
            raise no_scheme(name, scheme, "its scales are plain numbers", instead)
        if self.exponents:
            _need_exponents(name, scheme, instead)
        else:
            need_scales(name, scheme, _SCALES)
        if not isinstance(scheme.granularity, PerTensor | PerBlock):
            group = group_size(name, scheme, (shape[0], shape[1]))
            _need_whole_groups(name, scheme, shape, group)

    def pack(self, name: str, q: QTensor) -> dict[str, Array]:
        assert not isinstance(q.scale, QTensor), "refused by check"
        xp = namespace(q.codes)
        scale = stored_values(name, q.scale, scale_format(q.scheme))
        shape = _plain_scale_shape(q.scheme, q.shape)
        tensors = {"weight_scale": laid_out(xp.reshape(scale, shape))}
        if not isinstance(self.codes, Int):
            return {"weight": as_floats(laid_out(checked_codes(q)), DTYPES[self.codes.name]), **tensors}
        zero = _zero_points(name, q)
        if zero is not None:
            tensors[_ZERO] = laid_out(xp.reshape(codes_of(zero, self.codes), shape))
        return {"weight": codes_of(laid_out(unsigned_codes(q)), self.codes), **tensors}

    def unpack(self, name: str, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        stored, scales = scale_format(scheme), _plain_scale_shape(scheme, shape)
        scale = values_of(take(name, tensors, "weight_scale", DTYPES[stored.name], scales), stored)
        fmt = scheme.format
        weight = take(name, tensors, "weight", DTYPES.get(self.codes.name, self.codes.code_dtype), shape)
        if not isinstance(fmt, Int) or not isinstance(self.codes, Int):
            return put_together(as_patterns(weight), scheme, scale)
        codes = codes_of(_raised(weight), fmt)
        if scheme.symmetric and _ZERO not in tensors:
            return put_together(codes, scheme, scale, _middle(scale, fmt))
        zero = _raised(take(name, tensors, _ZERO, "int8", scales))
        if scheme.symmetric and bool(namespace(zero).any(zero != 128)):
            raise other_symmetry(name, _ZERO)
        return put_together(codes, scheme, scale, zero_points_of(zero, fmt))


@final
@dataclass(frozen=True, slots=True)
class PackedFloats(Form):
    """nvfp4-pack-quantized and mxfp4-pack-quantized: two codes of 4 bits a byte, the first in the lower half.

    Args:
      exponents: E8M0 scales for groups of 32 (MXFP4); else E4M3 for groups of 16 under a divisor of the tensor (NVFP4).
    """

    exponents: bool

    def check(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> None:
        instead = "use mxfp4" if self.exponents else "use nvfp4"
        need_matrix(name, shape)
        if scheme.format.name != "fp4_e2m1":
            raise no_scheme(name, scheme, "its codes are fp4_e2m1", instead)
        if self.exponents:
            _need_exponents(name, scheme, instead)
        else:
            inner = scheme.scale
            good = (
                isinstance(inner, Scheme) and inner.format.name == "ue4m3" and inner.scale is None and inner.symmetric
            )
            if not good or not isinstance(inner, Scheme) or not isinstance(inner.granularity, PerTensor):
                raise no_scheme(name, scheme, "its scales are ue4m3 under one float32 scale of the tensor", instead)
            if group_size(name, scheme, (shape[0], shape[1])) != 16:
                raise no_scheme(name, scheme, "its groups have 16 elements", instead)
        _need_whole_groups(name, scheme, shape, 32 if self.exponents else 16)

    def pack(self, name: str, q: QTensor) -> dict[str, Array]:
        packed = pack_bits(checked_codes(q), 4)
        if not isinstance(q.scale, QTensor):
            return {"weight_packed": packed, "weight_scale": laid_out(stored_values(name, q.scale, FORMATS["e8m0"]))}
        outer = q.scale.scale
        assert not isinstance(outer, QTensor), "refused by check"
        xp = namespace(outer)
        scale = xp.reshape(outer, (1,))
        divisor = _reciprocal(scale)
        if bool(xp.any(_reciprocal(divisor) != scale)):
            raise TargetError(
                f"{name} stores 1/scale of the whole tensor as float32, and 1/{float(scale[0]):.9g} does not lead back "
                "to it; pack invertible(q), which moves the scale by one place at most",
                slug="layout-global-scale",
            )
        local = as_floats(laid_out(checked_codes(q.scale)), DTYPES["ue4m3"])
        return {"weight_packed": packed, "weight_scale": local, "weight_global_scale": divisor}

    def unpack(self, name: str, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        packed = take(name, tensors, "weight_packed", "uint8", (shape[0], shape[1] // 2))
        codes = unpack_bits(packed, 4, shape[1])
        scales = scheme.granularity.scale_shape(shape)
        if self.exponents:
            stored = FORMATS["e8m0"]
            return put_together(codes, scheme, values_of(take(name, tensors, "weight_scale", "uint8", scales), stored))
        assert isinstance(scheme.scale, Scheme), "refused by check"
        local = as_patterns(take(name, tensors, "weight_scale", DTYPES["ue4m3"], scales))
        divisor = take(name, tensors, "weight_global_scale", "float32", (1,))
        if bool(namespace(divisor).any(divisor == 0)):
            raise no_numbers(1, 1)
        return put_together(codes, scheme, put_together(local, scheme.scale, _reciprocal(divisor)))


def _two_levels(scale: Format | Scheme | None) -> bool:
    """Returns whether scales are stored as those of NVFP4: ue4m3 under one float32 scale of the tensor."""
    return scale == Scheme(format=FORMATS["ue4m3"], granularity=PerTensor(), symmetric=True)


def _need_exponents(name: str, scheme: Scheme, instead: str) -> None:
    groups = scheme.granularity
    if scheme.scale != FORMATS["e8m0"] or not isinstance(groups, PerGroup) or groups.size != 32:
        raise no_scheme(name, scheme, "its scales are e8m0, one for 32 elements along the last axis", instead)
    if groups.axis not in (-1, 1):
        raise no_scheme(name, scheme, "its groups lie along the last axis", instead)


def _need_whole_groups(name: str, scheme: Scheme, shape: tuple[int, ...], group: int) -> None:
    if shape[1] % group:
        raise no_shape(
            name,
            shape,
            f"groups of {group} do not divide its in {shape[1]}",
            f"pad it to {-(-shape[1] // group) * group}, or use {scheme.format.name}-channel",
        )


def _zero_points(name: str, q: QTensor) -> Array | None:
    """Returns unsigned zero points of an asymmetric scheme; None for a symmetric one, whose are the middle."""
    fmt = q.scheme.format
    assert isinstance(fmt, Int), "refused by check"
    zero = unsigned_zero_points(name, q)
    if not q.scheme.symmetric:
        return zero
    if bool(namespace(zero).any(zero != 1 << (fmt.bits - 1))):
        raise no_scheme(name, q.scheme, "it is symmetric, and a zero point is not the middle", "use an asymmetric one")
    return None


def _middle(scale: Array, fmt: Int) -> Array:
    """Returns the zero points of a symmetric scheme, float32 of the scales' shape."""
    xp = namespace(scale)
    return xp.full_like(scale, 0.0 if fmt.signed else float(1 << (fmt.bits - 1)))


def _raised(signed: Array) -> Array:
    xp = namespace(signed)
    return xp.astype(signed, xp.int32) + 128


def _plain_scale_shape(scheme: Scheme, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) if isinstance(scheme.granularity, PerTensor) else scheme.granularity.scale_shape(shape)


def _refuse_other_shape(name: str, tensors: Mapping[str, Array], shape: tuple[int, ...]) -> None:
    """Raises NumericsError(slug="packed-tensor") if the stored shape is another."""
    found = tuple(int(size) for size in take(name, tensors, "weight_shape", "int64", (2,)))
    if found != shape:
        raise NumericsError(
            f"{name}: tensor 'weight_shape' says {list(found)}, expected {list(shape)}; give the weight's own shape",
            slug="packed-tensor",
        )
