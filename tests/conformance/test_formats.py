"""Every entry of the catalogs of formats and of named schemes, ours and third parties', is judged here."""

import re

import numpy as np
import pytest

from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.schemes import SCHEMES

each_format = pytest.mark.parametrize("name", list(FORMATS))
# Every code of up to 16 bits; beyond, the ends and what lies around powers of two.
EXHAUSTIVE_BITS = 16


def codes_of(name: str) -> np.ndarray:
    fmt = FORMATS[name]
    dtype = np.dtype(fmt.code_dtype)
    if isinstance(fmt, Int) and fmt.bits > EXHAUSTIVE_BITS:
        near = [s * (1 << b) + d for b in range(24) for s in (1, -1) for d in (-1, 0, 1)]
        return np.array([*near, fmt.min_code, 1 << 24], dtype=dtype)
    if isinstance(fmt, Int):
        return np.arange(fmt.min_code, fmt.max_code + 1).astype(dtype)
    return np.arange(1 << fmt.stored_bits).astype(dtype)


@each_format
def test_a_format_bears_the_name_under_which_it_is_found(name):
    assert FORMATS[name].name == name


@each_format
def test_every_code_survives_decode_and_encode(name):
    fmt, codes = FORMATS[name], codes_of(name)
    values = fmt.decode(codes)
    assert values.dtype == np.float32
    again = fmt.encode(values)
    assert again.dtype == np.dtype(fmt.code_dtype)
    assert np.array_equal(fmt.decode(again), values)


@each_format
def test_the_codes_fill_their_bits(name):
    fmt = FORMATS[name]
    if fmt.stored_bits <= EXHAUSTIVE_BITS:
        assert len(codes_of(name)) == 2**fmt.stored_bits
    assert np.dtype(fmt.code_dtype).itemsize * 8 >= fmt.stored_bits


@each_format
def test_the_ends_are_values_and_all_beyond_saturates(name):
    fmt = FORMATS[name]
    ends = np.array([fmt.min_value, fmt.max_value])
    far = np.array([-1e30, 1e30], dtype=np.float32)
    assert fmt.min_value < fmt.max_value
    assert np.array_equal(fmt.encode(far), fmt.encode(ends))
    assert np.array_equal(fmt.decode(fmt.encode(ends)), ends.astype(np.float32))


# The nearest of all is asked where all can be compared.
@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].stored_bits <= 8])
def test_encode_is_monotone_and_takes_the_nearest(name):
    fmt = FORMATS[name]
    grid = np.unique(fmt.decode(codes_of(name)).astype(np.float64))
    span = grid[-1] - grid[0]
    values = np.linspace(grid[0] - span / 8, grid[-1] + span / 8, 3001).astype(np.float32)
    back = fmt.decode(fmt.encode(values)).astype(np.float64)
    assert np.all(np.diff(back) >= 0)
    best = np.min(np.abs(grid[None, :] - values[:, None].astype(np.float64)), axis=1)
    assert np.array_equal(np.abs(back - values), best)


@each_format
def test_codes_are_the_same_on_array_api_strict(name):
    import array_api_strict as strict

    fmt = FORMATS[name]
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32) * np.float32(fmt.max_value)
    assert np.array_equal(fmt.encode(values), np.asarray(fmt.encode(strict.asarray(values))))


@pytest.mark.parametrize("name", list(SCHEMES))
def test_the_name_of_a_scheme_says_its_bits(name):
    scheme = SCHEMES[name]
    assert scheme.name == name
    match = re.fullmatch(r"w(\d+)a(\d+)(-dynamic)?(-g\d+)?", name)
    assert match is not None, "the field's shorthand"
    assert (scheme.weight_bits, scheme.activation_bits) == (int(match[1]), int(match[2]))
    assert scheme.dynamic == bool(match[3])
