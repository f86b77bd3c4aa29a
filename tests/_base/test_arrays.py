import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fewbits._base.arrays import exponent_above, freeze, ignore_overflow, namespace, same_array, to_numpy


@given(st.floats(min_value=5e-324, max_value=1.7e308))
@example(1.0)
@example(1.4012984643e-45)
@example(0.99999994)
def test_exponent_above_is_the_least_power_of_two_above(value):
    e = exponent_above(value)
    mantissa = (
        np.ldexp(np.float64(value), -e) if e > -1020 else np.ldexp(np.float64(value), 1000) / np.ldexp(1.0, 1000 + e)
    )
    assert 0.5 <= mantissa < 1


@given(st.integers(-1000, 1000))
def test_a_power_of_two_lies_below_the_next(exponent):
    assert exponent_above(float(np.ldexp(1.0, exponent))) == exponent + 1


def test_frozen_arrays_cannot_be_written_and_the_callers_can():
    mine = np.zeros(3)
    frozen = freeze(mine)
    with pytest.raises(ValueError, match="read-only"):
        frozen[0] = 1
    mine[0] = 1  # the caller's own array stays writable; a value that must not follow it takes a copy
    assert freeze(frozen) is frozen


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (np.array([np.nan]), np.array([np.nan]), True),
        (np.array([0.0]), np.array([-0.0]), False),
        (np.zeros(2, np.float32), np.zeros(2, np.float64), False),
        (np.zeros((1, 2)), np.zeros(2), False),
        (np.zeros((2, 3)).T, np.zeros((3, 2)), True),
        (None, None, True),
        (None, np.zeros(0), False),
        (np.zeros(0), None, False),
    ],
)
def test_same_means_dtype_shape_and_bits(left, right, same):
    assert same_array(left, right) is same


def test_overflow_is_silent_inside_and_nowhere_else():
    big = np.float32(3e38) * np.ones(1, np.float32)
    with ignore_overflow():
        assert np.isinf(big * 10)[0]
    with pytest.raises(RuntimeWarning):
        big * 10
    zero = np.zeros(1)
    with ignore_overflow(), pytest.raises(RuntimeWarning):
        zero / zero


def test_arrays_of_another_library_are_compared_and_converted():
    import array_api_strict as strict

    theirs = strict.asarray([1.0, 2.0])
    assert namespace(theirs).__name__ == "array_api_strict"
    assert isinstance(to_numpy(theirs), np.ndarray)
    assert same_array(theirs, np.array([1.0, 2.0]))
    assert freeze(theirs) is theirs


def test_arrays_of_two_libraries_do_not_mix():
    import array_api_strict as strict

    with pytest.raises(TypeError):
        namespace(np.zeros(1), strict.asarray([0.0]))
