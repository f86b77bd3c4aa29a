"""AWQ checkpoints, version "gemm": 4 bits along the output axis, eight columns to a word in an order of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from fewbits._base.arrays import Array, like, namespace
from fewbits._base.packing import laid_out, pack_bits, unpack_bits
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.packing._parts import (
    codes_of,
    group_size,
    need_divisors,
    need_integers,
    need_matrix,
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

_NAME = "awq"
_BITS = 4
_HALF = FORMATS["fp16"]
# Nibble i of a word, lowest first, holds column _ORDER[i] of its eight.
_ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_WORD_COLUMNS = len(_ORDER)


@final
@dataclass(frozen=True, slots=True)
class Awq(Layout):
    """``qweight``, ``qzeros`` and ``scales`` of a linear layer, in = K, out = N.

    w[k, n] = (q[k, n] - z[k // group_size, n]) * scales[k // group_size, n], codes unsigned: signed ones are stored
    plus 8. Words run along N; nibble i of a word is column (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight.

    Source: AutoAWQ, WQLinear_GEMM.from_linear and utils/packing_utils.py.
    """

    @property
    def name(self) -> str:
        return _NAME

    @property
    def reader(self) -> str:
        return "AutoAWQ, vLLM, transformers: version gemm"

    def check(self, scheme: Scheme, shape: tuple[int, ...]) -> None:
        _groups(scheme, shape)

    def pack(self, q: QTensor) -> dict[str, Array]:
        _groups(q.scheme, q.shape)
        assert not isinstance(q.scale, QTensor), "refused above"
        xp = namespace(q.codes)
        return {
            "qweight": _interleaved(xp.matrix_transpose(unsigned_codes(q))),
            "qzeros": _interleaved(xp.matrix_transpose(unsigned_zero_points(_NAME, q))),
            "scales": laid_out(xp.matrix_transpose(stored_values(_NAME, q.scale, _HALF))),
        }

    def unpack(self, tensors: Mapping[str, Array], scheme: Scheme, shape: tuple[int, ...]) -> QTensor:
        fmt, group = _groups(scheme, shape)
        rows, columns = shape
        groups, width = columns // group, rows // _WORD_COLUMNS
        codes = _straight(take(_NAME, tensors, "qweight", "int32", (columns, width)))
        zero = _straight(take(_NAME, tensors, "qzeros", "int32", (groups, width)))
        scale = values_of(take(_NAME, tensors, "scales", "float16", (groups, rows)), _HALF)
        return put_together(codes_of(codes, fmt), scheme, _turned(scale), zero_points_of(zero, fmt))


def _groups(scheme: Scheme, shape: tuple[int, ...]) -> tuple[Int, int]:
    """Returns the format of the codes and the size of a group, or refuses."""
    fmt = need_integers(_NAME, scheme, (_BITS,))
    matrix = need_matrix(_NAME, shape)
    group = group_size(_NAME, scheme, matrix)
    need_scales(_NAME, scheme, ("fp32", "fp16"))
    need_divisors(_NAME, scheme, matrix, group, (_WORD_COLUMNS, 1))
    return fmt, group


def _turned(array: Array) -> Array:
    return laid_out(namespace(array).matrix_transpose(array))


def _interleaved(codes: Array) -> Array:
    """Returns codes [rows, N] as int32 words [rows, N / 8]."""
    xp = namespace(codes)
    eights = xp.reshape(codes, (codes.shape[0], -1, _WORD_COLUMNS))
    ordered = xp.take(eights, like(_ORDER, codes), axis=2)
    return pack_bits(xp.reshape(ordered, codes.shape), _BITS, word=32)


def _straight(words: Array) -> Array:
    """Returns the codes of words [rows, N / 8] turned, uint8 [N, rows]."""
    xp = namespace(words)
    rows, width = words.shape
    eights = xp.reshape(unpack_bits(words, _BITS, width * _WORD_COLUMNS), (rows, width, _WORD_COLUMNS))
    ordered = xp.take(eights, like(np.argsort(_ORDER), words), axis=2)
    return _turned(xp.reshape(ordered, (rows, width * _WORD_COLUMNS)))


LAYOUT: Layout = Awq()
