"""Packing of bits: exact for every width and length, and laid out as a scalar loop over single bits says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits._base.errors import NumericsError
from fewbits._base.packing import as_floats, as_patterns, laid_out, pack_bits, packed_length, unpack_bits

WIDTHS = range(1, 9)


def scalar_bits(codes: list[int], bits: int, word: int) -> list[int]:
    """One Python integer as the whole stream: code i at bit i * bits; cut into words, the lowest first."""
    stream = 0
    for i, code in enumerate(codes):
        stream |= (code % (1 << bits)) << (i * bits)
    return [(stream >> start) % (1 << word) for start in range(0, len(codes) * bits, word)]


@pytest.mark.parametrize("word", [8, 32])
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_and_length_is_packed_as_the_scalar_loop_says_and_comes_back(bits, word):
    rng = np.random.default_rng(bits)
    for count in [*range(70), 255, 256, 257]:
        codes = rng.integers(0, 1 << bits, (3, count)).astype(np.uint8)
        packed = pack_bits(codes, bits, word=word)
        assert packed.dtype == (np.uint8 if word == 8 else np.int32)
        assert packed.shape == (3, packed_length(count, bits, word=word))
        expected = [scalar_bits([int(c) for c in row], bits, word) for row in codes]
        assert [[int(w) % (1 << word) for w in row] for row in packed] == expected
        assert np.array_equal(unpack_bits(packed, bits, count), codes)


@given(st.data(), st.integers(1, 8), st.sampled_from([8, 32]), st.booleans())
def test_any_codes_come_back(data, bits, word, signed):
    low = -(1 << (bits - 1)) if signed else 0
    codes = data.draw(st.lists(st.integers(low, low + (1 << bits) - 1), max_size=200))
    array = np.array(codes, dtype=np.int32)
    back = unpack_bits(pack_bits(array, bits, word=word), bits, len(codes), signed=signed)
    assert back.dtype == (np.int8 if signed else np.uint8)
    assert back.tolist() == codes


@given(st.integers(1, 8), st.binary(min_size=0, max_size=64))
def test_any_bytes_of_a_full_run_are_packed_again_to_themselves(bits, raw):
    array = np.frombuffer(raw[: len(raw) // bits * bits], dtype=np.uint8)
    count = array.size * 8 // bits
    assert np.array_equal(pack_bits(unpack_bits(array, bits, count), bits), array)


@pytest.mark.parametrize("bits", WIDTHS)
def test_bits_above_the_width_are_cut_off_and_the_last_word_ends_in_zeros(bits):
    packed = pack_bits(np.array([-1]), bits)
    assert packed.tolist() == [(1 << bits) - 1]


@pytest.mark.parametrize("word", [8, 32])
def test_a_buffer_of_another_length_is_refused(word):
    packed = pack_bits(np.arange(11), 3, word=word)
    for count in (9, 22):
        if packed_length(count, 3, word=word) != packed.size:
            with pytest.raises(NumericsError, match="packed-size"):
                unpack_bits(packed, 3, count)
    with pytest.raises(NumericsError, match="packed-size"):
        unpack_bits(packed[:-1], 3, 11)


@pytest.mark.parametrize("word", [8, 32])
@pytest.mark.parametrize("bits", WIDTHS)
def test_array_api_strict_packs_the_same_words(bits, word):
    import array_api_strict as strict

    codes = np.random.default_rng(0).integers(0, 1 << bits, (2, 77))
    packed = pack_bits(strict.asarray(codes), bits, word=word)
    assert np.array_equal(np.asarray(packed), pack_bits(codes, bits, word=word))
    for signed in (False, True):
        ours = unpack_bits(np.asarray(packed), bits, 77, signed=signed)
        assert np.array_equal(np.asarray(unpack_bits(packed, bits, 77, signed=signed)), ours)


@pytest.mark.torch
@pytest.mark.parametrize("word", [8, 32])
@pytest.mark.parametrize("bits", WIDTHS)
def test_torch_packs_the_same_words(bits, word):
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    codes = np.random.default_rng(0).integers(-128, 128, (5, 77)).astype(np.int8)
    packed = pack_bits(torch.from_numpy(codes), bits, word=word)
    assert packed.numpy().tobytes() == pack_bits(codes, bits, word=word).tobytes()
    for signed in (False, True):
        ours = unpack_bits(packed.numpy(), bits, 77, signed=signed)
        assert np.array_equal(unpack_bits(packed, bits, 77, signed=signed).numpy(), ours)


TYPES = {"float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e5m2": 8}


@pytest.mark.parametrize("dtype", TYPES)
def test_every_pattern_of_a_small_float_comes_back(dtype):
    patterns = np.arange(1 << TYPES[dtype]).astype(f"uint{TYPES[dtype]}")
    floats = as_floats(patterns, dtype)
    assert floats.dtype.name == dtype
    assert np.array_equal(as_patterns(floats), patterns)
    assert as_patterns(patterns) is patterns


@pytest.mark.torch
@pytest.mark.parametrize("dtype", TYPES)
def test_torch_has_the_same_small_floats(dtype):
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    patterns = torch.from_numpy(np.arange(1 << TYPES[dtype]).astype(f"uint{TYPES[dtype]}"))
    floats = as_floats(patterns, dtype)
    assert floats.dtype is getattr(torch, dtype)
    assert torch.equal(as_patterns(floats).to(torch.int32), patterns.to(torch.int32))


def test_laid_out_turns_a_transposed_view_into_the_order_of_its_shape():
    turned = np.arange(6).reshape(2, 3).T
    assert laid_out(turned).flags.c_contiguous and np.array_equal(laid_out(turned), turned)
