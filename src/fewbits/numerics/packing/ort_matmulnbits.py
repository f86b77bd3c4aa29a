"""ONNX Runtime's MatMulNBits: blocks of a weight along its reduction axis, in 2, 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, device_of, namespace
from fewbits._base.packing import laid_out, pack_bits, packed_length, unpack_bits
from fewbits.numerics.packing._parts import (
    DTYPES,
    bias_of,
    codes_of,
    group_size,
    need_integers,
    need_matrix,
    no_scheme,
    put_together,
    scale_format,
    stored_values,
    take,
    unsigned_codes,
    unsigned_zero_points,
    values_of,
    zero_points_of,
)
from fewbits.numerics.packing.base import Layout
from fewbits.numerics.qtensor import QTensor
from fewbits.numerics.scheme import Scheme

_NAME = "ort-matmulnbits"
_BITS = (2, 4, 8)
_SMALLEST_BLOCK = 16
_SCALES = ("fp32", "fp16")


@final
@dataclass(frozen=True, slots=True)
class MatMulNBits(Layout):
    """The inputs ``B``, ``scales`` and ``zero_points`` of com.microsoft.MatMulNBits.

    w[n, k] = (B[n, k] - zero_points[n, k // block_size]) * scales[n, k // block_size], codes unsigned. A row begins a
    new byte, and so does a row of zero points; the last block of a row is filled with zeros. Without ``zero_points``
    they are 2**(bits - 1): so signed codes are stored plus that much, and symmetric schemes need no third tensor.

    Source: ONNX Runtime, ContribOperators.md, com.microsoft.MatMulNBits.
    """

    @property
    def name(self) -> str:
        return _NAME

    @property
    def reader(self) -> str:
        return "ONNX Runtime: com.microsoft.MatMulNBits"

    def check(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        fmt = need_integers(_NAME, scheme, _BITS)
        matrix = need_matrix(_NAME, shape)
        block = group_size(_NAME, scheme, matrix)
        legal = block >= _SMALLEST_BLOCK and block & (block - 1) == 0
        if not legal:
            near = max(_SMALLEST_BLOCK, 1 << (block.bit_length() - 1))
            raise no_scheme(
                _NAME, scheme, f"its blocks are powers of two of at least 16, not {block}", f"use {fmt.name}-g{near}"
            )
        if scale_format(scheme).name not in _SCALES:
            raise no_scheme(
                _NAME, scheme, "its scales are float32 or float16", f"use {fmt.name}-g{block} or …-scale-fp16"
            )

    def pack(self, q: QTensor) -> dict[str, Array]:
        self.check(q.scheme, q.shape)
        fmt = need_integers(_NAME, q.scheme, _BITS)
        rows, columns = need_matrix(_NAME, q.shape)
        block = group_size(_NAME, q.scheme, (rows, columns))
        assert not isinstance(q.scale, QTensor), "refused above"
        xp = namespace(q.codes)
        blocks = -(-columns // block)
        codes = unsigned_codes(q)
        missing = blocks * block - columns
        if missing:
            pad = xp.zeros((rows, missing), dtype=codes.dtype, device=device_of(codes))
            codes = xp.concat([codes, pad], axis=1)
        zero = unsigned_zero_points(_NAME, q)
        tensors = {
            "B": pack_bits(xp.reshape(codes, (rows, blocks, block)), fmt.bits),
            "scales": laid_out(stored_values(_NAME, q.scale, scale_format(q.scheme))),
        }
        if not q.scheme.symmetric or bool(xp.any(zero != 1 << (fmt.bits - 1))):
            tensors["zero_points"] = pack_bits(zero, fmt.bits)
        return tensors

    def unpack(self, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        self.check(scheme, shape)
        fmt = need_integers(_NAME, scheme, _BITS)
        rows, columns = need_matrix(_NAME, shape)
        block = group_size(_NAME, scheme, (rows, columns))
        blocks = -(-columns // block)
        packed = take(_NAME, tensors, "B", "uint8", (rows, blocks, packed_length(block, fmt.bits)))
        xp = namespace(packed)
        codes = xp.reshape(unpack_bits(packed, fmt.bits, block), (rows, blocks * block))[:, :columns]
        scales = scale_format(scheme)
        scale = values_of(take(_NAME, tensors, "scales", DTYPES[scales.name], (rows, blocks)), scales)
        if scheme.symmetric and "zero_points" not in tensors:
            zero = xp.full_like(xp.astype(scale, xp.int32), bias_of(fmt) or 1 << (fmt.bits - 1))
        else:
            width = packed_length(blocks, fmt.bits)
            zero = unpack_bits(take(_NAME, tensors, "zero_points", "uint8", (rows, width)), fmt.bits, blocks)
        return put_together(codes_of(codes, fmt), scheme, scale, zero_points_of(zero, fmt))


LAYOUT: Layout = MatMulNBits()
