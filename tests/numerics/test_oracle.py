"""The oracle is judged by what it does not share code with: NumPy's correctly rounded float32, and Python's round."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbits.numerics import oracle

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
