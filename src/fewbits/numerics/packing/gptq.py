"""GPTQ checkpoints, versions 1 and 2: codes packed down the reduction axis, zero points across it, float16 scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import TargetError
from fewbits._base.packing import laid_out, pack_bits, packed_length, unpack_bits, whole_numbers
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.packing._parts import (
    codes_of,
    group_size,
    need_divisors,
    need_integers,
    need_matrix,
    need_plain_order,
    need_scales,
    put_together,
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

_BITS = (2, 3, 4, 8)
_WORD = 32
_HALF = FORMATS["fp16"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Gptq(Layout):
    """``qweight``, ``qzeros``, ``scales`` and ``g_idx`` of a linear layer, in = K, out = N.

    w[k, n] = (q[k, n] - z[g_idx[k], n]) * scales[g_idx[k], n], codes unsigned: signed ones are stored plus half.
    32-bit words, lowest bits first: down K in qweight, along N in qzeros; 32 codes of 3 bits fill 3 words.

    Args:
      version: 1 stores z - 1 and its readers add 1 (``checkpoint_format`` "gptq"); 2 stores z ("gptq_v2").
    Source: AutoGPTQ and GPTQModel, QuantLinear.pack and dequantize_weight.
    """

    version: int

    @property
    def name(self) -> str:
        return "gptq" if self.version == 1 else f"gptq-v{self.version}"

    @property
    def reader(self) -> str:
        return "GPTQModel, AutoGPTQ, vLLM, transformers" if self.version == 1 else "GPTQModel (gptq_v2)"

    @property
    def variants(self) -> tuple[Layout, ...]:
        return (Gptq(version=1), Gptq(version=2))

    def check(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        self._groups(scheme, shape)

    def _groups(self, scheme: Scheme, shape: tuple[int, ...]) -> tuple[Int, int]:
        """Returns the format of the codes and the size of a group, or refuses."""
        fmt = need_integers(self.name, scheme, _BITS)
        matrix = need_matrix(self.name, shape)
        group = group_size(self.name, scheme, matrix)
        need_scales(self.name, scheme, ("fp32", "fp16"))
        step = _WORD // gcd(fmt.bits, _WORD)
        need_divisors(self.name, scheme, matrix, group, (step, step))
        return fmt, group

    def pack(self, q: QTensor) -> dict[str, Array]:
        fmt, group = self._groups(q.scheme, q.shape)
        assert not isinstance(q.scale, QTensor), "refused above"
        less = self._less
        zero = unsigned_zero_points(self.name, q, lowest=less) - less
        xp = namespace(q.codes)
        return {
            "qweight": laid_out(xp.matrix_transpose(pack_bits(unsigned_codes(q), fmt.bits, word=_WORD))),
            "qzeros": pack_bits(xp.matrix_transpose(zero), fmt.bits, word=_WORD),
            "scales": laid_out(xp.matrix_transpose(stored_values(self.name, q.scale, _HALF))),
            "g_idx": whole_numbers(q.shape[1], like_array=q.codes) // group,
        }

    def unpack(self, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        fmt, group = self._groups(scheme, shape)
        rows, columns = shape
        groups = columns // group
        packed = take(self.name, tensors, "qweight", "int32", (packed_length(columns, fmt.bits, word=_WORD), rows))
        width = packed_length(rows, fmt.bits, word=_WORD)
        zeros = take(self.name, tensors, "qzeros", "int32", (groups, width))
        scale = take(self.name, tensors, "scales", "float16", (groups, rows))
        if "g_idx" in tensors:
            need_plain_order(self.name, tensors, "g_idx", columns, group)
        xp = namespace(packed)
        zero = xp.astype(unpack_bits(zeros, fmt.bits, rows), xp.int32) + self._less
        if bool(xp.any(zero >= 1 << fmt.bits)):
            raise TargetError(
                f"{self.name}: a stored zero point of {(1 << fmt.bits) - 1} is {1 << fmt.bits} to some readers and 0 "
                "to others; quantize the model anew, or read it as version 2 if it is that",
                slug="layout-zero-point",
            )
        codes = unpack_bits(laid_out(xp.matrix_transpose(packed)), fmt.bits, columns)
        return put_together(
            codes_of(codes, fmt),
            scheme,
            laid_out(xp.matrix_transpose(values_of(scale, _HALF))),
            laid_out(xp.matrix_transpose(zero_points_of(zero, fmt))),
        )

    @property
    def _less(self) -> int:
        """What is taken off a zero point in the file."""
        return 1 if self.version == 1 else 0


LAYOUT: Layout = Gptq(version=1)
