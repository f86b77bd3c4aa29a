"""AWQ, version gemm: a scalar decoder from the formula and the order of a word's eight columns."""

from __future__ import annotations

import numpy as np
import pytest

import fewbits
from fewbits._base.errors import TargetError
from fewbits.numerics.packing.awq import LAYOUT
from fewbits.numerics.qtensor import QParams, QTensor

# Where column j of eight lies in a word: the inverse of the order 0, 2, 4, 6, 1, 3, 5, 7.
NIBBLE = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}
SCHEMES = ["int4-g32-scale-fp16", "uint4-g32-asym-scale-fp16", "uint4-g25-asym-scale-fp16", "int4-channel-scale-fp16"]


def tensor(scheme: str, shape: tuple[int, int] = (24, 50)) -> QTensor:
    return fewbits.quantize_array(np.random.default_rng(4).standard_normal(shape).astype(np.float32), scheme)


def scalar_code(words: np.ndarray, row: int, n: int) -> int:
    return (int(words[row, n // 8]) >> (4 * NIBBLE[n % 8])) & 15


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scalar_decoder_reads_our_bits(scheme):
    rows, columns = shape = (24, 96) if "g32" in scheme else (24, 50)
    q = tensor(scheme, shape)
    packed = LAYOUT.pack(q)
    group = columns // packed["scales"].shape[0]
    weight = np.empty(shape, np.float32)
    for n in range(rows):
        for k in range(columns):
            zero = scalar_code(packed["qzeros"], k // group, n)
            code = scalar_code(packed["qweight"], k, n)
            weight[n, k] = np.float32(code - zero) * np.float32(packed["scales"][k // group, n])
    assert weight.tobytes() == (q.dequantize() + np.float32(0)).tobytes()


def test_the_columns_0_to_7_of_a_row_make_the_word_75316420():
    q = tensor("uint4-channel-asym-scale-fp16", (8, 1))
    codes = np.arange(8, dtype=np.uint8).reshape(8, 1)
    packed = LAYOUT.pack(QTensor(codes=codes, params=q.params))
    assert packed["qweight"].tolist() == [[0x75316420]]


def test_a_zero_point_of_0_is_stored_as_it_is():
    q = tensor("uint4-channel-asym-scale-fp16", (8, 16))
    params = QParams(scheme=q.scheme, scale=q.scale, zero_point=np.zeros_like(q.zero_point))
    q = QTensor(codes=q.codes, params=params)
    packed = LAYOUT.pack(q)
    assert not packed["qzeros"].any() and LAYOUT.unpack(packed, q.scheme, q.shape).same(q)


@pytest.mark.parametrize(
    ("scheme", "shape", "words"),
    [
        ("int4-g32-scale-fp16", (12, 64), "its out 12 is no multiple of 8; pad it to 16"),
        ("int4-g32-scale-fp16", (8, 72), "groups of 32 do not divide its in 72; use int4-channel"),
        ("int8-g32-scale-fp16", (8, 64), "codes of 4 bits; use int4"),
        ("uint2-g32-asym-scale-fp16", (8, 64), "codes of 4 bits; use uint4"),
        ("int4-g32", (8, 64), "-scale-fp16"),
        ("mxfp4", (8, 64), "codes are not integers; use int4"),
    ],
)
def test_what_awq_cannot_hold_is_refused_with_the_nearest(scheme, shape, words):
    with pytest.raises(TargetError, match=words):
        LAYOUT.pack(tensor(scheme, shape))
