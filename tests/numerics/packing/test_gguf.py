"""GGUF's blocks: against gguf-py, against naive decoders written from ggml's structs, and back to every bit."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES

import fewbits
from fewbits._base.errors import FewbitsError, NumericsError, TargetError
from fewbits.numerics.named import lined_up
from fewbits.numerics.packing.gguf import LAYOUT, TYPES
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.schemes import SCHEMES

each = pytest.mark.parametrize("name", TYPES)
# gguf-py has encoders for these; of the K types it only decodes.
ENCODED = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def decoded(blocks: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return quants.dequantize(blocks, GGMLQuantizationType[name.upper()])


def encoded(rows: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quants.quantize(rows, GGMLQuantizationType[name.upper()])


def drawn(shape: tuple[int, ...] = (24, 512), seed: int = 0) -> np.ndarray:
    """Values over many magnitudes, with ties, zeros of both signs, constants and outliers."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal(shape) * np.exp2(rng.integers(-20, 12, (shape[0], 1)))
    rows[0], rows[1], rows[2], rows[3] = 0, -0.0, 3, -3
    rows[4, ::2] = 0
    rows[5] = np.arange(shape[1]) / 2 - 64
    rows[6] = np.where(np.arange(shape[1]) == 9, 100.0, 1e-3)
    rows[7] = 1e-7 * rng.standard_normal(shape[1])
    return rows.astype(np.float32)


def same_but_for_zeros(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether all but the signs of zeros is equal to the bit."""
    zero = (a == 0) & (b == 0)
    return bool(np.all(zero | (a.view(np.int32) == b.view(np.int32))))


def scheme_of(name: str):
    return lined_up(SCHEMES[name].weight.scheme)


# --- against gguf-py -----------------------------------------------------------------------------------------------


@each
def test_types_have_the_numbers_and_sizes_of_gguf(name):
    known = GGMLQuantizationType[name.upper()]
    assert TYPES[name].type_id == known
    assert (TYPES[name].elements, TYPES[name].bytes) == GGML_QUANT_SIZES[known]


@each
def test_gguf_py_reads_what_dequantize_says(name):
    q = fewbits.quantize_array(drawn(), name)
    tensors = LAYOUT.pack(q)
    blocks, values = tensors["blocks"], q.dequantize()
    assert blocks.dtype == np.uint8 and blocks.shape == (24, 512 // TYPES[name].elements * TYPES[name].bytes)
    read = decoded(blocks, name)
    if name == "nvfp4":
        # The tensor's scale is multiplied last there, and into the blocks' scales here: two roundings of 2**-24.
        read = read * tensors["scale"]
        assert np.all(np.abs(read - values) <= 2.0**-22 * np.abs(values))
    elif name == "mxfp4":  # gguf-py's table has one zero: -0 reads as +0
        assert same_but_for_zeros(read, values)
        assert np.any(np.signbit(values) & (values == 0)) and not np.any(np.signbit(read) & (read == 0))
    else:
        assert read.tobytes() == values.tobytes()


def test_nvfp4_blocks_read_the_same_bits_where_the_tensors_scale_is_one():
    q = fewbits.quantize_array(drawn()[8:], "nvfp4")
    inner = q.scale
    scale = QTensor(
        codes=inner.codes,
        params=QParams(scheme=inner.scheme, scale=np.ones((1, 1), np.float32), zero_point=inner.zero_point),
    )
    q = QTensor(codes=q.codes, params=QParams(scheme=q.scheme, scale=scale, zero_point=q.zero_point))
    assert same_but_for_zeros(decoded(LAYOUT.pack(q)["blocks"], "nvfp4"), q.dequantize())


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_32_are_those_of_gguf_pys_encoder(name, seed):
    rows = drawn((64, 256), seed)
    # A minimum of -0, and a scale from zeros of both signs, are +0 here: see the deviations below.
    rows = rows + np.float32(0) if name in ("q4_1", "q5_1", "q8_0") else rows
    assert LAYOUT.pack(fewbits.quantize_array(rows, name))["blocks"].tobytes() == encoded(rows, name).tobytes()


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize(
    "row",
    [np.full(32, 3e38), np.arange(32) * 1e37 - 1e38, np.full(32, -1e9), np.where(np.arange(32) < 16, 3e38, -3e38)],
    ids=["huge", "huge-range", "beyond-fp16", "both-ends"],
)
def test_where_gguf_pys_encoder_stores_infinity_ours_saturates(name, row):
    rows = row.astype(np.float32)[None]
    assert not np.all(np.isfinite(decoded(encoded(rows, name), name))), "no deviation any more"
    ours = decoded(LAYOUT.pack(fewbits.quantize_array(rows, name))["blocks"], name)
    assert np.all(np.isfinite(ours)) and np.abs(ours).max() >= 65504


@pytest.mark.parametrize("name", ENCODED)
def test_where_gguf_pys_encoder_divides_by_a_denormal_our_codes_are_those_of_zero(name):
    # All decodes to 0 in both: the scale is 0 in fp16. Theirs are codes of infinity and NaN, whatever a cast makes of
    # them; ours do not depend on the machine.
    rows = np.full((1, 32), 1e-44, np.float32)
    rows[0, ::2] = 0
    q = fewbits.quantize_array(rows, name)
    assert np.all(q.codes == 0)
    assert np.all(decoded(LAYOUT.pack(q)["blocks"], name) == 0)


@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_a_minimum_of_minus_zero_is_stored_as_zero(name):
    rows = np.full((1, 32), -0.0, np.float32)
    theirs, ours = encoded(rows, name)[0], LAYOUT.pack(fewbits.quantize_array(rows, name))["blocks"][0]
    assert theirs[2:4].tolist() == [0, 0x80] and ours[2:4].tolist() == [0, 0]
    assert np.array_equal(np.delete(theirs, [2, 3]), np.delete(ours, [2, 3]))


# --- any bytes -----------------------------------------------------------------------------------------------------


def random_blocks(name: str, rows: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns blocks of random bytes whose scales are finite, and what else the layout needs."""
    rng, kind = np.random.default_rng(seed), TYPES[name]
    blocks = rng.integers(0, 256, (rows, 2, kind.bytes), dtype=np.uint8)
    start = 0
    for field, size in zip(kind.fields, kind.sizes, strict=True):
        if field in ("d", "m"):
            blocks[..., start + 1] &= 0xBF  # an exponent below 16: finite, of either sign, denormals among them
        elif name == "mxfp4" and field == "scales":
            blocks[..., start] = rng.integers(0, 252, (rows, 2))  # 255 is NaN, and 6 * 2**126 is infinite
        elif name == "nvfp4" and field == "scales":
            blocks[..., start : start + size] = rng.integers(0, 0x7F, (rows, 2, size))  # 0x7F is NaN
        start += size
    extra = {"scale": np.ones(1, np.float32)} if name == "nvfp4" else {}
    return blocks.reshape(rows, -1), extra


@each
@pytest.mark.parametrize("seed", range(3))
def test_any_bytes_unpack_as_gguf_py_reads_them_and_pack_to_themselves(name, seed):
    blocks, extra = random_blocks(name, 40, seed)
    shape = (40, 2 * TYPES[name].elements)
    q = LAYOUT.unpack({"blocks": blocks, **extra}, scheme_of(name), shape)
    assert q.shape == shape
    assert same_but_for_zeros(q.dequantize(), decoded(blocks, name))
    again = LAYOUT.pack(q)
    assert again["blocks"].tobytes() == blocks.tobytes()
    assert again.keys() == {"blocks", *extra}


# --- naive decoders, one block, written from the structs of ggml-common.h ---------------------------------------------

F = np.float32


def half(block: bytes, at: int) -> np.float32:
    return F(struct.unpack_from("<e", block, at)[0])


def old_blocks(block: bytes, *, minimum: bool, fifth: bool) -> list[np.float32]:
    at = 4 if minimum else 2
    high = int.from_bytes(block[at : at + 4], "little") if fifth else 0
    low = block[at + 4 * fifth :]
    codes = [(low[j % 16] >> (4 * (j // 16)) & 15) | ((high >> j & 1) << 4) for j in range(32)]
    d, m = half(block, 0), half(block, 2)
    middle = 0 if minimum else 16 if fifth else 8
    return [F(d * F(c - middle)) + m if minimum else F(d * F(c - middle)) for c in codes]


def six_bits(s: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, (s[j + 4] >> 4) | (s[j] >> 6) << 4


def q2_k(block: bytes) -> list[np.float32]:
    scales, codes, d, dmin = block[:16], block[16:80], half(block, 80), half(block, 82)
    out = []
    for i in range(256):
        chunk, shift, place = i // 128, i % 128 // 32, i % 32
        sub = scales[i // 16]
        code = codes[32 * chunk + place] >> (2 * shift) & 3
        out.append(F(F(d * F(sub & 15)) * F(code)) - F(dmin * F(sub >> 4)))
    return out


def q3_k(block: bytes) -> list[np.float32]:
    mask, codes, packed, d = block[:32], block[32:96], block[96:108], half(block, 108)
    out = []
    for i in range(256):
        k = i // 16
        scale = (packed[k % 8] >> (4 * (k // 8)) & 15) | (packed[8 + k % 4] >> (2 * (k // 4)) & 3) << 4
        code = codes[32 * (i // 128) + i % 32] >> (2 * (i % 128 // 32)) & 3
        code -= 0 if mask[i % 32] >> (i // 32) & 1 else 4
        out.append(F(F(d * F(scale - 32)) * F(code)))
    return out


def q45_k(block: bytes, *, fifth: bool) -> list[np.float32]:
    d, dmin, scales = half(block, 0), half(block, 2), block[4:16]
    high, codes = block[16:48], block[48 if fifth else 16 :]
    out = []
    for i in range(256):
        scale, minimum = six_bits(scales, i // 32)
        code = codes[32 * (i // 64) + i % 32] >> (4 * (i // 32 % 2)) & 15
        if fifth:
            code |= (high[i % 32] >> (i // 32) & 1) << 4
        out.append(F(F(d * F(scale)) * F(code)) - F(dmin * F(minimum)))
    return out


def q6_k(block: bytes) -> list[np.float32]:
    low, high, scales, d = block[:128], block[128:192], struct.unpack("16b", block[192:208]), half(block, 208)
    out = []
    for i in range(256):
        chunk, quarter, place = i // 128, i % 128 // 32, i % 32
        code = low[64 * chunk + 32 * (quarter % 2) + place] >> (4 * (quarter // 2)) & 15
        code |= (high[32 * chunk + place] >> (2 * quarter) & 3) << 4
        out.append(F(F(d * F(scales[i // 16])) * F(code - 32)))
    return out


def fp4(code: int) -> float:
    return (-1.0) ** (code >> 3) * [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][code & 7]


def nvfp4(block: bytes) -> list[np.float32]:
    out = []
    for i in range(64):
        e, m = block[i // 16] >> 3, block[i // 16] & 7
        scale = (m if e == 0 else 8 + m) * 2.0 ** (max(e, 1) - 10)
        out.append(F(fp4(block[4 + 8 * (i // 16) + i % 8] >> (4 * (i % 16 // 8)) & 15) * scale))
    return out


NAIVE: dict[str, Callable[[bytes], list[np.float32]]] = {
    "q4_0": lambda b: old_blocks(b, minimum=False, fifth=False),
    "q4_1": lambda b: old_blocks(b, minimum=True, fifth=False),
    "q5_0": lambda b: old_blocks(b, minimum=False, fifth=True),
    "q5_1": lambda b: old_blocks(b, minimum=True, fifth=True),
    "q8_0": lambda b: [F(half(b, 0) * F(c)) for c in struct.unpack("32b", b[2:])],
    "q2_k": q2_k,
    "q3_k": q3_k,
    "q4_k": lambda b: q45_k(b, fifth=False),
    "q5_k": lambda b: q45_k(b, fifth=True),
    "q6_k": q6_k,
    "mxfp4": lambda b: [F(fp4(b[1 + j % 16] >> (4 * (j // 16)) & 15) * 2.0 ** (b[0] - 127)) for j in range(32)],
    "nvfp4": nvfp4,
}


@each
def test_a_naive_decoder_reads_the_same_bits(name):
    blocks, extra = random_blocks(name, 3, seed=9)
    q = LAYOUT.unpack({"blocks": blocks, **extra}, scheme_of(name), (3, 2 * TYPES[name].elements))
    for row, values in zip(blocks, q.dequantize(), strict=True):
        naive = [value for part in np.split(row, 2) for value in NAIVE[name](part.tobytes())]
        assert np.array(naive, np.float32).tobytes() == values.tobytes()


# --- there and back, and refusals ------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=["line", "matrix", "experts"])
def test_unpacking_gives_back_every_bit_in_any_rank(name, lead):
    values = np.random.default_rng(1).standard_normal((*lead, 512)).astype(np.float32)
    q = fewbits.quantize_array(values, name)
    tensors = LAYOUT.pack(q)
    assert tensors["blocks"].shape == (*lead, 512 // TYPES[name].elements * TYPES[name].bytes)
    assert LAYOUT.unpack(tensors, q.scheme, q.shape).same(q)


def test_an_axis_that_is_written_from_the_front_is_the_same_axis():
    values = np.random.default_rng(1).standard_normal((2, 256)).astype(np.float32)
    ours, theirs = (fewbits.quantize_array(values, "q4_k", axis=axis) for axis in (-1, 1))
    assert ours.scheme != theirs.scheme
    assert np.array_equal(LAYOUT.pack(ours)["blocks"], LAYOUT.pack(theirs)["blocks"])
    assert LAYOUT.unpack(LAYOUT.pack(theirs), theirs.scheme, theirs.shape).same(theirs)


def test_a_shorthand_of_the_same_scheme_packs_too():
    q = fewbits.quantize_array(drawn()[8:], "int8-g32-scale-fp16")
    assert np.array_equal(decoded(LAYOUT.pack(q)["blocks"], "q8_0"), q.dequantize())


@pytest.mark.parametrize(
    ("scheme", "hint"),
    [("int4-g128", "use q4_k"), ("nf4", "use q4_k"), ("int8-channel", "use q8_0"), ("int4-g32", "use q4_k")],
)
def test_other_schemes_are_refused_with_the_nearest(scheme, hint):
    q = fewbits.quantize_array(drawn(), scheme)
    with pytest.raises(TargetError, match=rf"{hint} \[layout-scheme\]"):
        LAYOUT.pack(q)


def test_blocks_along_another_axis_are_refused():
    q = fewbits.quantize_array(drawn().T, "q4_k", axis=0)
    with pytest.raises(TargetError, match=r"along the last axis.*\[layout-scheme\]"):
        LAYOUT.pack(q)


def test_rows_that_are_not_made_of_whole_blocks_are_refused():
    q = fewbits.quantize_array(drawn()[:, :48], "mxfp4")
    with pytest.raises(TargetError, match=r"blocks of 32.*pad it to 64.*\[layout-shape\]"):
        LAYOUT.pack(q)


def test_zero_points_are_refused():
    q = fewbits.quantize_array(drawn(), "q4_0")
    q = QTensor(codes=q.codes, params=QParams(scheme=q.scheme, scale=q.scale, zero_point=q.zero_point + 1))
    with pytest.raises(TargetError, match=r"layout-zero-point"):
        LAYOUT.pack(q)


def test_scales_off_fp16s_grid_are_refused():
    q = fewbits.quantize_array(drawn(), "q8_0")
    q = QTensor(codes=q.codes, params=QParams(scheme=q.scheme, scale=q.scale * F(1.0001), zero_point=q.zero_point))
    with pytest.raises(TargetError, match=r"layout-scale"):
        LAYOUT.pack(q)


@each
def test_short_missing_and_retyped_tensors_are_refused(name):
    q = fewbits.quantize_array(drawn(), name)
    tensors = LAYOUT.pack(q)
    for bad in (tensors["blocks"][:, :-1], tensors["blocks"][:-1], tensors["blocks"].view(np.int8)):
        with pytest.raises(NumericsError, match=r"packed-tensor"):
            LAYOUT.unpack({**tensors, "blocks": bad}, q.scheme, q.shape)
    with pytest.raises(NumericsError, match=r"needs a tensor 'blocks'.*packed-tensor"):
        LAYOUT.unpack({}, q.scheme, q.shape)
    with pytest.raises(FewbitsError, match=r"layout-shape"):
        LAYOUT.unpack(tensors, q.scheme, (24, 511))


@each
def test_scales_that_are_nan_or_infinite_are_refused(name):
    q = fewbits.quantize_array(drawn(), name)
    tensors = LAYOUT.pack(q)
    kind, start = TYPES[name], 0
    for field, size in zip(kind.fields, kind.sizes, strict=True):
        bad = tensors["blocks"].copy()
        if field in ("d", "m"):
            bad[0, start : start + 2] = 0x00, 0x7C
        elif name in ("mxfp4", "nvfp4") and field == "scales":
            bad[0, start] = 0xFF if name == "mxfp4" else 0x7F
        else:
            bad = None
        start += size
        if bad is not None:
            with pytest.raises(NumericsError, match=r"1 of \d+ scales.*packed-tensor"):
                LAYOUT.unpack({**tensors, "blocks": bad}, q.scheme, q.shape)
