"""GGUF: the blocks that llama.cpp reads, scales and codes side by side; 32 values each, 64, or 256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import final

from fewbits._base.arrays import Array, device_of, namespace
from fewbits._base.errors import NumericsError, TargetError
from fewbits._base.packing import laid_out
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerGroup
from fewbits.numerics.named import lined_up
from fewbits.numerics.packing._parts import bias_of, checked_codes, no_scheme, no_shape, stored_values, take
from fewbits.numerics.packing.base import Layout
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scheme import Scheme
from fewbits.numerics.schemes import SCHEMES

_NAME = "gguf"
_BLOCKS, _SCALE = "blocks", "scale"
_FP16 = FORMATS["fp16"]


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Some bits of each code, several codes to a byte.

    The codes of a block are seen as [groups, stacked, run]. Byte (g, r) holds code (g, s, r) at bit ``bits * s``.
    """

    groups: int
    stacked: int
    run: int
    bits: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.groups * self.run

    def pack(self, codes: Array) -> Array:
        """Returns [blocks, size] of the lowest bits of [blocks, elements]; both uint8."""
        xp = namespace(codes)
        codes = xp.reshape(codes & ((1 << self.bits) - 1), (-1, self.groups, self.stacked, self.run))
        packed = codes[:, :, 0, :]
        for place in range(1, self.stacked):
            packed = packed | (codes[:, :, place, :] << (self.bits * place))
        return xp.reshape(packed, (-1, self.size))

    def unpack(self, packed: Array) -> Array:
        """Returns [blocks, elements] of [blocks, size]."""
        xp = namespace(packed)
        packed = xp.reshape(packed, (-1, self.groups, self.run))
        parts = [(packed >> (self.bits * place)) & ((1 << self.bits) - 1) for place in range(self.stacked)]
        return xp.reshape(xp.stack(parts, axis=2), (-1, self.groups * self.stacked * self.run))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """One of GGUF's block types.

    Args:
      type_id: Its number in files (ggml_type).
      fields: What lies in a block, in this order.
      low: The low bits of the codes.
      high: The bits above them.
      scales: Sub-scales (and minimums behind them), their low bits; None where there are none, or in another way.
      high_scales: The bits above them.
    """

    type_id: int
    fields: tuple[str, ...]
    low: Part
    high: Part | None = None
    scales: Part | None = None
    high_scales: Part | None = None

    @property
    def elements(self) -> int:
        """Values of a block."""
        return self.low.groups * self.low.stacked * self.low.run

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each field."""
        parts = {"low": self.low, "high": self.high, "scales": self.scales, "high_scales": self.high_scales}
        return tuple(2 if f in ("d", "m") else 12 if f == "six bits" else _size(parts[f]) for f in self.fields)

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return sum(self.sizes)


def _size(part: Part | None) -> int:
    assert part is not None, "a field that a type names has its part"
    return part.size


# d and m are fp16, little end first; m is the minimum of Q4_1 and Q5_1, dmin of Q2_K, Q4_K and Q5_K.
TYPES: dict[str, BlockType] = {
    "q4_0": BlockType(type_id=2, fields=("d", "low"), low=Part(1, 2, 16, 4)),
    "q4_1": BlockType(type_id=3, fields=("d", "m", "low"), low=Part(1, 2, 16, 4)),
    "q5_0": BlockType(type_id=6, fields=("d", "high", "low"), low=Part(1, 2, 16, 4), high=Part(4, 8, 1, 1)),
    "q5_1": BlockType(type_id=7, fields=("d", "m", "high", "low"), low=Part(1, 2, 16, 4), high=Part(4, 8, 1, 1)),
    "q8_0": BlockType(type_id=8, fields=("d", "low"), low=Part(32, 1, 1, 8)),
    "q2_k": BlockType(type_id=10, fields=("scales", "low", "d", "m"), low=Part(2, 4, 32, 2), scales=Part(1, 2, 16, 4)),
    "q3_k": BlockType(
        type_id=11,
        fields=("high", "low", "scales", "high_scales", "d"),
        low=Part(2, 4, 32, 2),
        high=Part(1, 8, 32, 1),
        scales=Part(1, 2, 8, 4),
        high_scales=Part(1, 4, 4, 2),
    ),
    "q4_k": BlockType(type_id=12, fields=("d", "m", "six bits", "low"), low=Part(4, 2, 32, 4)),
    "q5_k": BlockType(
        type_id=13, fields=("d", "m", "six bits", "high", "low"), low=Part(4, 2, 32, 4), high=Part(1, 8, 32, 1)
    ),
    "q6_k": BlockType(
        type_id=14,
        fields=("low", "high", "scales", "d"),
        low=Part(2, 2, 64, 4),
        high=Part(2, 4, 32, 2),
        scales=Part(16, 1, 1, 8),
    ),
    "mxfp4": BlockType(type_id=39, fields=("scales", "low"), low=Part(1, 2, 16, 4), scales=Part(1, 1, 1, 8)),
    "nvfp4": BlockType(type_id=40, fields=("scales", "low"), low=Part(4, 2, 8, 4), scales=Part(4, 1, 1, 8)),
}
# What to name where a scheme is refused, by the bits of its codes.
_NEAREST = {1: "q2_k", 2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k"}


@cache
def _schemes() -> dict[str, Scheme]:
    return {name: lined_up(SCHEMES[name].weight.scheme) for name in TYPES}


def block_type(scheme: Scheme, shape: tuple[int, ...]) -> str:
    """Returns the name of the block type, a key of ``TYPES``, that holds a weight of this scheme and shape.

    Raises: TargetError(slug="layout-scheme") for other schemes; TargetError(slug="layout-shape") for rows that are
      not made of whole blocks.
    """
    along = _along_last(scheme, len(shape))
    name = next((name for name, known in _schemes().items() if known == along), None)
    if name is None:
        instead = _NEAREST.get(scheme.format.stored_bits, "q8_0")
        raise no_scheme(
            _NAME, scheme, f"it has the block types {', '.join(TYPES)}, along the last axis", f"use {instead}"
        )
    size, last = TYPES[name].elements, shape[-1] if shape else 0
    if last % size or last == 0 or 0 in shape:
        raise no_shape(
            _NAME,
            shape,
            f"{name} has blocks of {size} along the last axis",
            f"pad it to {max(1, -(-last // size)) * size}, or use a type with shorter blocks",
        )
    return name


def _along_last(scheme: Scheme, rank: int) -> Scheme:
    """Returns the scheme with groups along the last axis written as axis -1."""

    def stored(how: Format | Scheme | None) -> Format | Scheme | None:
        return _along_last(how, rank) if isinstance(how, Scheme) else how

    grouped = scheme.granularity
    if isinstance(grouped, PerGroup) and grouped.axis == rank - 1:
        grouped = PerGroup(axis=-1, size=grouped.size)
    return replace(scheme, granularity=grouped, scale=stored(scheme.scale), minimum=stored(scheme.minimum))


@final
@dataclass(frozen=True, slots=True)
class GgufBlocks(Layout):
    """A tensor ``blocks``, uint8 [..., bytes of a row]: each row is a run of blocks. For NVFP4 a tensor ``scale`` too.

    ``TYPES`` is the specification: the fields of a block, and where in them a code has its bits. Signed codes and
    sub-scales of fewer than 8 bits are stored plus half their number. NVFP4's scale of the whole tensor stands
    outside of the blocks, float32 [1]; a reader multiplies by it last, so that its values differ from
    ``dequantize()`` by float32's rounding where it is not a power of two.

    Source: ggml-common.h (block_q4_0 and following), ggml-quants.c (dequantize_row_*); gguf 0.19, quants.py.
    """

    @property
    def name(self) -> str:
        return _NAME

    @property
    def reader(self) -> str:
        return "llama.cpp and all that reads GGUF"

    def check(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        block_type(scheme, shape)

    def pack(self, q: QTensor) -> dict[str, Array]:
        name = block_type(q.scheme, q.shape)
        kind, xp = TYPES[name], namespace(q.codes)
        _refuse_zero_points(q)
        codes = _rows(_unsigned(q), kind.elements)
        fields: dict[str, Array] = {"low": kind.low.pack(codes)}
        if kind.high is not None:
            fields["high"] = kind.high.pack(codes >> kind.low.bits)
        fields |= _packed_scales(kind, q)
        blocks = xp.concat([fields[field] for field in kind.fields], axis=1)
        tensors = {_BLOCKS: laid_out(xp.reshape(blocks, (*q.shape[:-1], -1)))}
        if name == "nvfp4":
            assert isinstance(q.scale, QTensor)
            tensors[_SCALE] = xp.reshape(q.scale.scale, (1,))
        return tensors

    def unpack(self, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        name = block_type(scheme, shape)
        kind = TYPES[name]
        length = shape[-1] // kind.elements * kind.bytes
        found = take(_NAME, tensors, _BLOCKS, "uint8", (*shape[:-1], length))
        xp = namespace(found)
        blocks, fields, start = xp.reshape(found, (-1, kind.bytes)), {}, 0
        for field, size in zip(kind.fields, kind.sizes, strict=True):
            fields[field] = blocks[:, start : start + size]
            start += size
        codes = kind.low.unpack(fields["low"])
        if kind.high is not None:
            codes = codes | (kind.high.unpack(fields["high"]) << kind.low.bits)
        whole = take(_NAME, tensors, _SCALE, "float32", (1,)) if name == "nvfp4" else None
        scale, offset = _unpacked_scales(kind, fields, scheme, shape, whole)
        zero = xp.zeros(scale.shape, dtype=xp.float32, device=device_of(found))
        params = QParams(scheme=scheme, scale=scale, zero_point=zero, offset=offset)
        return QTensor(codes=_signed(xp.reshape(codes, shape), scheme.format), params=params)


def _refuse_zero_points(q: QTensor) -> None:
    for part in (q, q.scale, q.offset):
        if isinstance(part, QTensor) and bool(namespace(part.zero_point).any(part.zero_point != 0)):
            raise TargetError(
                f"{_NAME} stores no zero points, and {part.scheme.name!r} has some; quantize by name, e.g. with 'q4_k'",
                slug="layout-zero-point",
            )


def _rows(array: Array, columns: int) -> Array:
    return namespace(array).reshape(array, (-1, columns))


def _unsigned(q: QTensor) -> Array:
    """Returns codes as their bits, uint8: signed ones of 8 bits in two's complement, else plus half their number."""
    fmt, codes = q.scheme.format, checked_codes(q)
    xp = namespace(codes)
    wide = xp.astype(codes, xp.int32)
    return xp.astype((wide + _bias(fmt)) & 255, xp.uint8)


def _bias(fmt: Format) -> int:
    return bias_of(fmt) if isinstance(fmt, Int) and fmt.bits < 8 else 0


def _signed(codes: Array, fmt: Format) -> Array:
    """Returns codes in the format's own dtype; the inverse of ``_unsigned``."""
    xp = namespace(codes)
    wide = xp.astype(codes, xp.int32) - _bias(fmt)
    if fmt.code_dtype == "int8":
        wide = wide - 256 * xp.astype(wide > 127, xp.int32)
    return xp.astype(wide, getattr(xp, fmt.code_dtype))


def _packed_scales(kind: BlockType, q: QTensor) -> dict[str, Array]:
    """Returns the fields with scales and minimums."""
    xp = namespace(q.codes)
    if not isinstance(q.scale, QTensor):
        if kind.scales is not None:  # MXFP4: the exponent
            stored = q.scheme.scale
            assert isinstance(stored, Format)
            return {"scales": _rows(stored_values(_NAME, q.scale, stored), kind.scales.size)}
        assert not isinstance(q.offset, QTensor), "plain scales, plain minimums"
        minimum = {} if q.offset is None else {"m": _fp16_bytes(-q.offset)}
        return {"d": _fp16_bytes(q.scale), **minimum}
    parts = [q.scale] if q.offset is None else [q.scale, q.offset]
    subs = kind.elements // _group(q.scheme)
    codes = [_rows(_unsigned(part), subs) for part in parts]
    fields = {}
    if kind.scales is not None:
        every = xp.concat(codes, axis=1)
        fields["scales"] = kind.scales.pack(every)
        if kind.high_scales is not None:
            fields["high_scales"] = kind.high_scales.pack(every >> kind.scales.bits)
    else:
        fields["six bits"] = _pack_six_bits(*codes)
    if "d" in kind.fields:
        fields |= {field: _fp16_bytes(part.scale) for field, part in zip(("d", "m"), parts, strict=False)}
    return fields


def _unpacked_scales(
    kind: BlockType, fields: dict[str, Array], scheme: Scheme, shape: tuple[int, ...], whole: Array | None
) -> tuple[Array | QTensor, Array | QTensor | None]:
    """Returns scale and offset; ``whole`` is NVFP4's scale of the tensor."""
    xp = namespace(fields["low"])
    outer = (*shape[:-1], shape[-1] // kind.elements)
    numbers = [xp.reshape(_fp16_values(fields[field]), outer) for field in ("d", "m") if field in fields]
    if not isinstance(scheme.scale, Scheme):
        if kind.scales is not None:
            assert scheme.scale is not None
            return _finite(scheme.scale.decode(xp.reshape(fields["scales"], outer))), None
        return numbers[0], (-numbers[1] if len(numbers) > 1 else None)
    if kind.scales is None:
        codes = list(_unpack_six_bits(fields["six bits"]))
    else:
        every = kind.scales.unpack(fields["scales"])
        if kind.high_scales is not None:
            every = every | (kind.high_scales.unpack(fields["high_scales"]) << kind.scales.bits)
        subs = kind.elements // _group(scheme)
        codes = [every[:, start : start + subs] for start in range(0, every.shape[1], subs)]
    if whole is not None:
        numbers = [xp.reshape(_finite(whole), (1,) * len(shape))]
    nested = []
    for how, part, number in zip((scheme.scale, scheme.minimum), codes, numbers, strict=False):
        assert isinstance(how, Scheme)
        signed = _signed(xp.reshape(part, (*shape[:-1], -1)), how.format)
        _finite(how.format.decode(signed))
        nested.append(QTensor(codes=signed, params=QParams(scheme=how, scale=number, zero_point=xp.zeros_like(number))))
    return nested[0], (nested[1] if len(nested) > 1 else None)


def _group(scheme: Scheme) -> int:
    assert isinstance(scheme.granularity, PerGroup)
    return scheme.granularity.size


def _pack_six_bits(scale: Array, minimum: Array) -> Array:
    """Returns 12 bytes of 8 sub-scales and 8 minimums: the first four of each under the top bits of the last four."""
    xp = namespace(scale)
    tops = [part[:, :4] | ((part[:, 4:] >> 4) << 6) for part in (scale, minimum)]
    return xp.concat([*tops, (scale[:, 4:] & 15) | (minimum[:, 4:] << 4)], axis=1)


def _unpack_six_bits(packed: Array) -> tuple[Array, Array]:
    """Returns the sub-scales and the minimums that ``_pack_six_bits`` packed."""
    xp = namespace(packed)
    scale, minimum, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        xp.concat([scale & 63, (rest & 15) | ((scale >> 6) << 4)], axis=1),
        xp.concat([minimum & 63, (rest >> 4) | ((minimum >> 6) << 4)], axis=1),
    )


def _fp16_bytes(values: Array) -> Array:
    """Returns float32 values that fp16 holds as [blocks, 2] uint8, little end first."""
    xp = namespace(values)
    stored_values(_NAME, values, _FP16)  # refuses what fp16 does not hold
    pattern = xp.reshape(xp.astype(_FP16.encode(values), xp.int32), (-1,))
    return xp.astype(xp.stack([pattern & 255, pattern >> 8], axis=1), xp.uint8)


def _fp16_values(stored: Array) -> Array:
    """Returns the float32 values of [blocks, 2] uint8."""
    xp = namespace(stored)
    wide = xp.astype(stored, xp.int32)
    return _finite(_FP16.decode(wide[:, 0] | (wide[:, 1] << 8)))


def _finite(scales: Array) -> Array:
    """Returns the scales, or refuses a file with NaN or infinity among them."""
    xp = namespace(scales)
    bad = ~xp.isfinite(scales)
    if bool(xp.any(bad)):
        raise NumericsError(
            f"{_NAME}: {int(xp.sum(xp.astype(bad, xp.int64)))} of {prod(scales.shape)} scales in tensor {_BLOCKS!r} "
            "are NaN or infinite; the file is damaged, or the tensor has another scheme",
            slug="packed-tensor",
        )
    return scales


LAYOUT: Layout = GgufBlocks()
