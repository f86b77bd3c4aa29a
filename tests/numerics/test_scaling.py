import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewbits._base.errors import NumericsError
from fewbits.numerics.format import Int
from fewbits.numerics.scaling import MIN_SCALE, affine_from_amax, choose_affine, choose_scale

LARGEST = 3.4028234663852886e38
FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
WIDTHS = st.integers(2, 16)
FORMATS = st.builds(Int, bits=WIDTHS, signed=st.booleans())


def dequantized(code: float, zero: np.ndarray, scale: np.ndarray) -> float:
    return float((np.float32(code) - zero) * scale)


@settings(max_examples=300)
@given(FLOAT32.map(abs), FORMATS)
@example(0.0, Int(bits=8, signed=True))  # N6
@example(1e-45, Int(bits=8, signed=True))  # N8
@example(LARGEST, Int(bits=8, signed=True))  # N9
@example(LARGEST, Int(bits=5, signed=False))
def test_a_scale_is_normal_and_its_largest_code_is_finite(amax, fmt):
    scale = choose_scale(np.array(amax), fmt)
    assert scale.dtype == np.float32
    assert MIN_SCALE <= scale < np.inf
    assert np.isfinite(np.float32(fmt.max_value) * scale)


@settings(max_examples=300)
@given(st.floats(min_value=MIN_SCALE * 2**16, max_value=LARGEST, width=64), FORMATS)
@example(LARGEST, Int(bits=2, signed=True))
def test_amax_gets_the_largest_code(amax, fmt):
    amax = float(np.float32(amax))
    scale = choose_scale(np.array(amax), fmt)
    assert round(amax / float(scale)) == fmt.max_code


def test_a_range_of_zero_gets_the_scale_one():
    scale, zero = choose_affine(np.array([0.0, 3.0]), np.array([0.0, -2.0]), Int(bits=8, signed=False))
    assert scale.tolist() == [1.0, 1.0]
    assert zero.tolist() == [0.0, 0.0]


@settings(max_examples=500)
@given(FLOAT32, FLOAT32, FORMATS)
@example(-1e-45, 1e-45, Int(bits=8, signed=False))
@example(-3e38, 3e38, Int(bits=8, signed=False))
@example(-3e38, 3e38, Int(bits=2, signed=False))
@example(-LARGEST, LARGEST, Int(bits=2, signed=True))
@example(-LARGEST, 1.0, Int(bits=8, signed=True))
@example(0.0, LARGEST, Int(bits=5, signed=False))
def test_an_affine_range_has_a_normal_scale_an_integer_zero_point_and_no_infinite_code(a, b, fmt):
    # N8, N9, N11.
    low, high = min(a, b), max(a, b)
    scale, zero = choose_affine(np.array(low), np.array(high), fmt)
    assert MIN_SCALE <= scale < np.inf
    assert zero == np.round(zero)
    assert fmt.min_code <= zero <= fmt.max_code
    assert np.isfinite(dequantized(fmt.min_code, zero, scale))
    assert np.isfinite(dequantized(fmt.max_code, zero, scale))


@settings(max_examples=500)
@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), FORMATS)
def test_an_affine_range_reaches_both_ends_within_half_a_step(a, b, fmt):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    scale, zero = choose_affine(np.array(low), np.array(high), fmt)
    # The zero point is off by at most 1/2. The scale is rounded to float32, 2**-24 relative, which counts once for each
    # of the 2**bits steps of the range.
    slack = float(scale) * (0.5 + 2.0 ** (fmt.bits - 24))
    assert (fmt.min_code - float(zero)) * float(scale) <= low + slack
    assert (fmt.max_code - float(zero)) * float(scale) >= high - slack


@given(st.floats(1e-30, 1e30), FORMATS)
def test_a_symmetric_range_has_the_same_grid_on_both_sides(amax, fmt):
    scale, zero = affine_from_amax(np.array([amax]), fmt)
    assert zero == (0 if fmt.signed else 2 ** (fmt.bits - 1))
    assert float(zero[0]) - fmt.min_code == fmt.max_code - float(zero[0]) + 1
    top = (fmt.max_code - float(zero[0])) * float(scale[0])
    assert abs(top - amax) <= amax * 2.0**-24


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_range_that_is_not_finite_is_refused(bad):
    fmt = Int(bits=8, signed=False)
    one, wrong = np.ones(2), np.array([1.0, bad])
    for call in (
        lambda: choose_scale(wrong, fmt),
        lambda: choose_affine(one, wrong, fmt),
        lambda: choose_affine(wrong, one, fmt),
        lambda: affine_from_amax(wrong, fmt),
    ):
        with pytest.raises(NumericsError) as caught:
            call()
        assert caught.value.slug == "nonfinite-amax"


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=8), FORMATS)
def test_scales_of_many_groups_are_the_scales_of_each(amax, fmt):
    many = choose_scale(np.array(amax), fmt)
    assert many.tolist() == [float(choose_scale(np.array(a), fmt)) for a in amax]


@given(st.floats(1e-20, 1e20), st.integers(-20, 20), FORMATS)
def test_scales_follow_powers_of_two_exactly(amax, shift, fmt):
    factor = 2.0**shift
    assert choose_scale(np.array(amax * factor), fmt) == choose_scale(np.array(amax), fmt) * np.float32(factor)
