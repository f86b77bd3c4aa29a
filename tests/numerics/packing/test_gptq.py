"""GPTQ: a scalar decoder from the formula, w = (q - z) * s over a stream of bits, versions 1 and 2."""

from __future__ import annotations

import numpy as np
import pytest

import fewbits
from fewbits._base.errors import NumericsError, TargetError
from fewbits.numerics.packing.gptq import LAYOUT, Gptq
from fewbits.numerics.qtensor import QParams, QTensor

V1, V2 = Gptq(version=1), Gptq(version=2)
SCHEMES = [
    f"{'u' if asym else ''}int{bits}-{groups}{asym}-scale-fp16"
    for bits in (2, 3, 4, 8)
    for groups in ("g32", "g64", "channel")
    for asym in ("", "-asym")
]


def tensor(scheme: str, shape: tuple[int, int] = (32, 64)) -> QTensor:
    # Both signs in every group, so that no zero point is 0, which version 1 cannot store.
    values = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    values[:, ::32] = -1.0
    return fewbits.quantize_array(values, scheme)


def from_stream(words: np.ndarray, bits: int, index: int) -> int:
    """Returns code ``index`` of a column of words: bits [index * bits, …) of one long integer."""
    stream = sum((int(word) % (1 << 32)) << (32 * place) for place, word in enumerate(words))
    return (stream >> (index * bits)) % (1 << bits)


def scalar_weight(packed: dict[str, np.ndarray], bits: int, less: int) -> np.ndarray:
    """w[k, n] = (q - (z + less)) * s, z along N and q down K; turned to [out, in]."""
    columns, rows = packed["g_idx"].size, packed["scales"].shape[1]
    weight = np.empty((rows, columns), np.float32)
    for n in range(rows):
        for k in range(columns):
            g = packed["g_idx"][k]
            zero = from_stream(packed["qzeros"][g], bits, n) + less
            code = from_stream(packed["qweight"][:, n], bits, k)
            weight[n, k] = np.float32(code - zero) * np.float32(packed["scales"][g, n])
    return weight


@pytest.mark.parametrize("layout", [V1, V2], ids=lambda layout: layout.name)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scalar_decoder_reads_our_bits(layout, scheme):
    q = tensor(scheme)
    less = 1 if layout.version == 1 else 0
    weight = scalar_weight(layout.pack(q), q.scheme.format.stored_bits, less)
    assert weight.tobytes() == (q.dequantize() + np.float32(0)).tobytes()


@pytest.mark.parametrize(("layout", "word"), [(V1, 0x77777777), (V2, 0x88888888)], ids=["v1", "v2"])
def test_symmetric_4_bit_zeros_are_the_words_that_the_versions_are_told_apart_by(layout, word):
    zeros = layout.pack(tensor("int4-g32-scale-fp16"))["qzeros"]
    assert np.all(zeros.view(np.uint32) == word)


def test_32_codes_of_3_bits_fill_3_words_and_codes_10_and_21_lie_across_two():
    q = tensor("uint3-channel-asym-scale-fp16", (32, 32))
    codes = np.zeros((32, 32), np.uint8)
    codes[0, 10], codes[1, 21] = 0b101, 0b011
    words = V2.pack(QTensor(codes=codes, params=q.params))["qweight"].view(np.uint32)
    assert words.shape == (3, 32)
    # Code 10 begins at bit 30: two bits of it in word 0, one in word 1. Code 21 begins at bit 63: one and two.
    assert words[:, 0].tolist() == [0b01 << 30, 0b1, 0]
    assert words[:, 1].tolist() == [0, 0b1 << 31, 0b01]


def with_zero(q: QTensor, zero: float) -> QTensor:
    zeros = np.array(q.zero_point)
    zeros[0, 0] = zero
    return QTensor(codes=q.codes, params=QParams(scheme=q.scheme, scale=q.scale, zero_point=zeros))


def test_a_zero_point_of_0_would_wrap_in_version_1_and_is_held_by_version_2():
    q = with_zero(tensor("uint4-g32-asym-scale-fp16"), 0.0)
    with pytest.raises(TargetError, match=r"from 1 to 15, and one is 0; use the symmetric int4, or gptq's version 2"):
        V1.pack(q)
    assert V2.unpack(V2.pack(q), q.scheme, q.shape).same(q)


def test_the_largest_zero_point_is_held_by_both():
    q = with_zero(tensor("uint4-g32-asym-scale-fp16"), 15.0)
    for layout in (V1, V2):
        assert layout.unpack(layout.pack(q), q.scheme, q.shape).same(q)


@pytest.mark.parametrize("zero", [0.5, -1.0, 16.0, float("nan")])
def test_zero_points_between_and_beyond_the_codes_are_refused(zero):
    q = with_zero(tensor("uint4-g32-asym-scale-fp16"), zero)
    for layout in (V1, V2):
        with pytest.raises(TargetError, match="layout-zero-point"):
            layout.pack(q)


def test_a_stored_15_of_version_1_on_which_readers_disagree_is_refused():
    q = tensor("uint4-g32-asym-scale-fp16")
    packed = V1.pack(q)
    packed["qzeros"] = np.full_like(packed["qzeros"], -1)
    with pytest.raises(TargetError, match="is 16 to some readers and 0 to others"):
        V1.unpack(packed, q.scheme, q.shape)


def test_scales_off_the_float16_grid_are_refused_with_the_scheme_to_take():
    with pytest.raises(TargetError, match=r"64 of 64 are not on its grid.*-scale-fp16 \[layout-scale\]"):
        LAYOUT.pack(tensor("int4-g32"))


def test_a_file_without_g_idx_is_read_and_one_in_act_order_is_refused():
    q = tensor("int4-g32-scale-fp16")
    packed = LAYOUT.pack(q)
    order = packed["g_idx"][::-1].copy()
    with pytest.raises(NumericsError, match="act-order"):
        LAYOUT.unpack({**packed, "g_idx": order}, q.scheme, q.shape)
    del packed["g_idx"]
    assert LAYOUT.unpack(packed, q.scheme, q.shape).same(q)


@pytest.mark.parametrize(
    ("scheme", "shape", "words"),
    [
        ("int4-g32-scale-fp16", (30, 64), r"its out 30 is no multiple of 8; pad it to 32"),
        ("int3-g32-scale-fp16", (32, 80), r"its in 80 is no multiple of 32; pad it to 96"),
        ("int4-g48-scale-fp16", (8, 64), r"groups of 48 do not divide its in 64; use int4-g32 or int4-g64"),
        ("int4-g48-scale-fp16", (8, 40), r"groups of 48 do not divide its in 40; use int4-channel"),
        ("int5-g32-scale-fp16", (32, 64), r"codes of 2 or 3 or 4 or 8 bits; use int8"),
        ("int4-tensor-scale-fp16", (8, 64), r"use int4-g128 or int4-channel"),
        ("int4-g32-scale-bf16", (8, 64), r"its scales are fp32 or fp16, not bf16; use …-scale-fp16"),
        ("nf4-g32", (8, 64), r"places in a list of values, not integers; use int4"),
    ],
)
def test_what_gptq_cannot_hold_is_refused_with_the_nearest(scheme, shape, words):
    with pytest.raises(TargetError, match=words):
        LAYOUT.pack(tensor(scheme, shape))
