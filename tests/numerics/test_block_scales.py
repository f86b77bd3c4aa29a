"""Scales of blocks against the exact oracle: the four policies of microscaling, and NVFP4's scales of scales."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import fewbits
from fewbits.numerics import oracle
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.named import ArrayScheme
from fewbits.numerics.qtensor import QTensor, as_array
from fewbits.numerics.scaling import Exponents, PowerOfTwo
from fewbits.numerics.schemes import SCHEMES

MICROSCALING = {
    name: named.weight for name, named in SCHEMES.items() if isinstance(named.weight.rule, PowerOfTwo)
}  # fmt: skip
# Powers of two, every mantissa at which a policy changes its mind for some element; and the neighbours of each.
FRACTIONS = [1.0, 1 + 2.0**-23, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.96875, 1.984375, 1.9921875, 2 - 2.0**-23]
EXPONENTS = [-126, -125, -9, -8, -1, 0, 1, 2, 8, 15, 16, 126, 127]


def amaxes() -> np.ndarray:
    some = np.array([f * 2.0**e for e in EXPONENTS for f in FRACTIONS], dtype=np.float32)
    around = [some, np.nextafter(some, np.float32(0)), np.nextafter(some, np.float32(3e38))]
    return np.concatenate([*around, np.zeros(1, np.float32)])


def scales_of(amax: np.ndarray, array: ArrayScheme) -> np.ndarray:
    """Returns the scale of each block of 32 whose largest magnitude is given: by turns at the front and the end."""
    blocks = np.zeros((len(amax), 32), np.float32)
    blocks[:, 0], blocks[:, -1] = -amax, amax / 4
    return np.asarray(as_array(fewbits.quantize_array(blocks, array).scale)).ravel()


def is_what_the_oracle_says(amax: np.ndarray, array: ArrayScheme) -> None:
    assert isinstance(array.rule, PowerOfTwo)
    scales = scales_of(amax, array)
    fmt, policy = array.scheme.format, array.rule.policy.value
    exact = [oracle.shared_exponent(Fraction(a), fmt, policy) for a in amax.tolist()]
    bad = [(a, s, e) for a, s, e in zip(amax.tolist(), scales.tolist(), exact, strict=True) if s != 2.0**e]
    assert not bad, (array.name, bad[:5])


@pytest.mark.parametrize("name", list(MICROSCALING))
def test_the_scale_of_a_block_is_the_definitions_power_of_two(name):
    is_what_the_oracle_says(amaxes(), MICROSCALING[name])


@pytest.mark.parametrize("name", list(MICROSCALING))
def test_the_scale_of_a_block_at_float32s_end_keeps_its_elements_finite(name):
    # MXINT8's -2 times the largest power of two would be -2**128.
    array = MICROSCALING[name]
    amax = amaxes()
    amax = amax[amax >= 2.0**126]
    is_what_the_oracle_says(amax, array)
    for value in (amax, -amax):
        assert np.all(np.isfinite(fewbits.quantize_array(np.repeat(value[:, None], 32, axis=1), array).dequantize()))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.floats(2.0**-126, 3.4028234663852886e38, width=32), min_size=1, max_size=20))
@pytest.mark.parametrize("name", list(MICROSCALING))
def test_the_scale_of_any_block_is_the_definitions_power_of_two(name, amax):
    is_what_the_oracle_says(np.array(amax, np.float32), MICROSCALING[name])


DENORMAL = np.array([1e-45, 2.0**-140, 2.0**-128, 2.0**-127, 1.5 * 2.0**-127, 2.0**-126 - 2.0**-149], np.float32)


@pytest.mark.parametrize("name", list(MICROSCALING))
def test_the_scale_of_a_block_of_denormals_is_the_definitions_power_of_two(name):
    is_what_the_oracle_says(DENORMAL, MICROSCALING[name])


@pytest.mark.parametrize("name", list(MICROSCALING))
def test_only_a_policy_that_promises_it_keeps_the_largest_value_inside(name):
    array = MICROSCALING[name]
    amax = amaxes()
    amax = amax[(amax > 2.0**-100) & (amax < 2.0**100)].astype(np.float64)
    saturates = amax / scales_of(amax.astype(np.float32), array) > float(oracle.reach(array.scheme.format))
    assert isinstance(array.rule, PowerOfTwo)
    promised = array.rule.policy in (Exponents.CEIL, Exponents.RCEIL)
    assert saturates.any() == (not promised)


def groups_of(values: np.ndarray, size: int) -> list[list[Fraction]]:
    """Returns the exact values of each group along the rows, the last of a row as short as it is."""
    rows = [row[start : start + size] for row in values.tolist() for start in range(0, len(row), size)]
    return [[Fraction(value) for value in row] for row in rows]


DRAWN = given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 40), st.integers(-60, 60))


def drawn_values(seed: int, rows: int, columns: int, exponent: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 2.0**exponent).astype(np.float32)


@settings(deadline=None, max_examples=15)
@DRAWN
@pytest.mark.parametrize("name", ["int8", "int3", "int16", "fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "mxint8", "nf4"])
def test_a_scale_of_the_full_range_is_the_largest_magnitude_over_the_reach(name, seed, rows, columns, exponent):
    values = drawn_values(seed, rows, columns, exponent)
    scale = np.asarray(fewbits.quantize_array(values, f"{name}-g16").scale).ravel().tolist()
    reach = oracle.reach(FORMATS[name])
    assert scale == [float(oracle.to_float32(max(map(abs, group)) / reach)) for group in groups_of(values, 16)]


@settings(deadline=None, max_examples=15)
@DRAWN
@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_a_scale_of_few_values_is_the_mean_magnitude_of_the_values_that_there_are(name, seed, rows, columns, exponent):
    # The mean is added in float64 and rounded to float32: off by a unit in the last place at most.
    values = drawn_values(seed, rows, columns, exponent)
    scale = np.asarray(fewbits.quantize_array(values, f"{name}-g16").scale).ravel()
    mean = [sum(map(abs, group), Fraction(0)) / len(group) for group in groups_of(values, 16)]
    expected = np.array([float(oracle.to_float32(m)) for m in mean], np.float32)
    assert np.all(np.abs(scale.view(np.int32) - expected.view(np.int32)) <= 1)


def nvfp4_by_oracle(values: np.ndarray) -> tuple[list[int], list[int], Fraction]:
    """Returns codes, codes of the scales and the tensor's scale of rows of blocks of 16."""
    element, stored = FORMATS["fp4_e2m1"], FORMATS["ue4m3"]
    blocks = values.reshape(-1, 16)
    scale_codes, tensor = oracle.two_level_scales(np.abs(blocks).max(axis=1).tolist(), element, stored)
    codes = []
    for block, code in zip(blocks.tolist(), scale_codes, strict=True):
        scale = Fraction(oracle.dequantize(code, tensor, stored))
        codes += [oracle.quantize(value, scale, element) for value in block]
    return codes, scale_codes, tensor


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 4), st.integers(0, 14), st.integers(-60, 60))
@example(0, 1, 1, 0, 0)
def test_nvfp4_is_the_definition_of_its_two_levels(seed, rows, blocks, spread, exponent):
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((rows, blocks, 16)) * np.exp2(rng.integers(-spread, 1, (rows, blocks, 1)))
    values = (drawn * 2.0**exponent).astype(np.float32).reshape(rows, -1)
    tensor = fewbits.quantize_array(values, "nvfp4")
    codes, scale_codes, scale = nvfp4_by_oracle(values)
    assert isinstance(tensor.scale, QTensor)
    assert Fraction(np.asarray(tensor.scale.scale).item()) == scale
    assert np.asarray(tensor.scale.codes).ravel().tolist() == scale_codes
    assert np.asarray(tensor.codes).ravel().tolist() == codes
    stored = [Fraction(oracle.dequantize(code, scale, FORMATS["ue4m3"])) for code in scale_codes for _ in range(16)]
    expected = [oracle.dequantize(c, s, FORMATS["fp4_e2m1"]) for c, s in zip(codes, stored, strict=True)]
    assert np.asarray(tensor.dequantize()).ravel().tolist() == expected
