"""The oracle is judged by what shares no code with it: the processor, Python's struct and round, printed tables."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.numerics import oracle
from fewbits.numerics.formats import FORMATS

# Up to half of the largest float32: the oracle does not model overflow.
FLOATS = st.floats(min_value=-1.7e38, max_value=1.7e38, allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(FLOATS)
def test_to_float32_agrees_with_the_processor_on_float64_values(value):
    assert oracle.to_float32(Fraction(value)) == Fraction(float(np.float32(value)))


@settings(max_examples=300, deadline=None)
@given(
    st.floats(width=32, min_value=2.0**-100, max_value=2.0**100),
    st.floats(width=32, min_value=2.0**-24, max_value=2.0**24),
)
def test_to_float32_of_a_quotient_is_the_float32_division(a, b):
    assert oracle.to_float32(Fraction(a) / Fraction(b)) == Fraction(float(np.float32(a) / np.float32(b)))


def test_to_float32_keeps_denormals_and_flushes_below_half_of_the_smallest():
    smallest = Fraction(1, 2**149)
    assert oracle.to_float32(smallest) == smallest
    assert oracle.to_float32(smallest / 2) == 0  # a tie goes to the even zero
    assert oracle.to_float32(smallest * Fraction(3, 4)) == smallest


@given(st.fractions())
def test_round_half_even_is_pythons_round(value):
    assert oracle.round_half_even(value) == round(value)


# --- formats ------------------------------------------------------------------------------------------------------


def same(exact: Fraction | float, value: float) -> bool:
    """Returns whether the oracle's value is this one; NaN is NaN."""
    if isinstance(exact, Fraction):
        return math.isfinite(value) and exact == Fraction(value)
    return exact == value or (math.isnan(exact) and math.isnan(value))


def test_values_of_half_and_single_precision_are_those_that_python_unpacks():
    half, brain, single = (FORMATS[name] for name in ("fp16", "bf16", "fp32"))
    for code in range(1 << 16):
        assert same(oracle.value_of(code, half), struct.unpack("<e", struct.pack("<H", code))[0]), code
        upper = struct.unpack("<f", struct.pack("<I", code << 16))[0]
        assert same(oracle.value_of(code, brain), upper), code
        assert same(oracle.value_of(struct.unpack("<i", struct.pack("<I", code << 16))[0], single), upper), code


@settings(max_examples=300, deadline=None)
@given(st.floats(-65504, 65504))
def test_codes_of_half_precision_are_those_that_python_packs(value):
    assert oracle.encode(value, FORMATS["fp16"]) == struct.unpack("<H", struct.pack("<e", value))[0]


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_codes_of_single_precision_are_the_patterns(value):
    assert oracle.encode(value, FORMATS["fp32"]) == struct.unpack("<i", struct.pack("<f", value))[0]


# Largest, smallest normal, smallest denormal; codes of the largest and of NaN. OCP OFP8 1.0, MX 1.0 (tables of 5.3).
TABLES = {
    "fp8_e4m3": (448, 2.0**-6, 2.0**-9, 0x7E, 0x7F),
    "fp8_e5m2": (57344, 2.0**-14, 2.0**-16, 0x7B, 0x7E),
    "ue4m3": (448, 2.0**-6, 2.0**-9, 0x7E, 0x7F),
    "fp6_e3m2": (28, 0.25, 0.0625, 0x1F, None),
    "fp6_e2m3": (7.5, 1, 0.125, 0x1F, None),
    "fp4_e2m1": (6, 1, 0.5, 0x7, None),
    "fp16": (65504, 2.0**-14, 2.0**-24, 0x7BFF, 0x7E00),
    "bf16": (255 * 2.0**120, 2.0**-126, 2.0**-133, 0x7F7F, 0x7FC0),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_float_has_the_ends_that_its_specification_prints(name):
    fmt = FORMATS[name]
    largest, normal, denormal, top, nan = TABLES[name]
    values, codes = oracle.listed(fmt)
    assert (values[-1], codes[-1]) == (largest, top)
    assert values[0] == (-largest if fmt.signed else 0)
    assert values[values.index(Fraction(0)) + 1] == denormal
    assert oracle.value_of(1 << fmt.mantissa_bits, fmt) == normal
    assert oracle.nan_code(fmt) == nan
    assert nan is None or math.isnan(oracle.value_of(nan, fmt))


def test_values_of_e2m1_are_the_specifications_list():
    values = [oracle.value_of(code, FORMATS["fp4_e2m1"]) for code in range(16)]
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert values == [*positive, *(-v for v in positive)]
    assert [oracle.is_negative(code, FORMATS["fp4_e2m1"]) for code in (0, 8)] == [False, True]


def test_e8m0_and_mxint8_are_the_specifications_equations():
    e8m0, mxint8 = FORMATS["e8m0"], FORMATS["mxint8"]
    assert [oracle.value_of(code, e8m0) for code in (0, 127, 254)] == [Fraction(1, 1 << 127), 1, 1 << 127]
    assert math.isnan(oracle.value_of(255, e8m0))
    assert [oracle.value_of(code, mxint8) for code in (-128, 1, 127)] == [-2, Fraction(1, 64), Fraction(127, 64)]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("int8", 2.5, 2), ("int8", 3.5, 4), ("int8", -128.5, -128), ("int8", 1e30, 127), ("uint4", -1.0, 0),
        ("fp4_e2m1", 0.25, 0), ("fp4_e2m1", -0.25, 8), ("fp4_e2m1", 0.75, 2), ("fp4_e2m1", 5.0, 6),
        ("fp4_e2m1", 1e9, 7),
        ("fp8_e4m3", 464.0, 0x7E), ("fp8_e4m3", -math.inf, 0xFE), ("ue4m3", -1.0, 0), ("ue4m3", -0.0, 0),
        ("e8m0", 1.5, 128), ("e8m0", 3.0, 128), ("e8m0", 0.0, 0), ("e8m0", 6.0, 130),
        ("binary", 0.0, 1), ("binary", -1e-45, 0), ("ternary", 0.5, 1), ("ternary", -0.5, 1),
        ("ternary", 0.50000006, 2), ("nf4", 0.9, 15), ("nf4", 0.0, 7),
    ],
)  # fmt: skip
def test_codes_that_are_worked_out_by_hand(name, value, code):
    # 0.75 lies between the codes 1 (0.5) and 2 (1); 5 between 6 (4) and 7 (6); 1.5 between 2**0 (127) and 2**1 (128),
    # 3 between 2**1 (128) and 2**2 (129), 6 between 129 and 130. Of the ternary's ties both go to zero.
    assert oracle.encode(value, FORMATS[name]) == code


def test_nan_without_a_code_is_refused():
    with pytest.raises(ValueError, match="no code for NaN"):
        oracle.encode(math.nan, FORMATS["int8"])


def test_the_neighbours_of_a_value_share_it_by_distance():
    fp4 = FORMATS["fp4_e2m1"]
    assert oracle.neighbours(4.5, fp4) == (6, 7, Fraction(1, 4))
    assert oracle.neighbours(-4.5, fp4) == (15, 14, Fraction(3, 4))
    assert oracle.neighbours(6.0, fp4) == oracle.neighbours(math.inf, fp4) == (7, 7, 0)


@pytest.mark.parametrize(
    ("amax", "policy", "exponent"),
    [
        (6, "floor", 0), (7.99, "floor", 0), (8, "floor", 1), (0, "floor", 0), (1e-45, "floor", -127),
        (6, "rceil", 0), (6.01, "rceil", 1), (4, "ceil", 0), (4.01, "ceil", 1),
        (6.99, "even", 0), (7, "even", 1), (5, "even", 0), (8, "even", 1),
    ],
)  # fmt: skip
def test_shared_exponents_of_mxfp4_that_are_worked_out_by_hand(amax, policy, exponent):
    # E2M1: emax 2, largest 6, one bit of mantissa; 7 is the middle of 6 and 8, whose mantissa is even.
    assert oracle.shared_exponent(Fraction(amax), FORMATS["fp4_e2m1"], policy) == exponent


def test_the_scales_of_two_levels_are_the_two_divisions():
    codes, tensor = oracle.two_level_scales([12.0, 6.0, 0.0], FORMATS["fp4_e2m1"], FORMATS["ue4m3"])
    assert tensor == oracle.to_float32(Fraction(2, 448))
    assert codes == [0x7E, 0x76, 0x76]  # 448, and half of it for 1 = 6 / 6 and for the zeros


def test_the_values_of_nf4_are_the_quantiles_that_qlora_averages():
    from scipy.stats import norm

    # Equation 4 of QLoRA (arXiv 2305.14314), with as many quantiles on both sides of a zero of its own: 8 above and 7
    # below it, from 1/2 to 1 - (1/30 + 1/32) / 2, scaled to [-1, 1]. The list was computed in float32: a probability
    # is off by up to 2**-24, a quantile by that over its density, 0.072 at the ends, relative to the largest, 1.85.
    offset = 1 - (1 / 30 + 1 / 32) / 2
    above, below = norm.ppf(np.linspace(offset, 0.5, 9)[:-1]), -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, [0.0], below])) / above[0]
    values, _ = oracle.listed(FORMATS["nf4"])
    slack = 2.0**-24 * (1 / 0.072 / 1.84) * 2
    assert np.abs(np.array([float(v) for v in values]) - expected).max() <= slack
