"""The rule whose negative end is cut; what holds of every rule is in tests/conformance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits._base.errors import UsageError
from fewbits.algorithms.ranges import RANGE_RULES, parse_range_rule
from fewbits.calibration.histogram import histogram_of
from fewbits.numerics.format import Int

RULE, WHOLE = RANGE_RULES["mse-low"], RANGE_RULES["mse"]
U8, I8 = Int(bits=8, signed=False), Int(bits=8, signed=True)


@given(st.integers(0, 50), st.floats(0.01, 1.0))
def test_the_negative_end_is_a_part_of_that_of_least_error_and_the_other_stays(seed, share):
    histogram = histogram_of(np.random.default_rng(seed).standard_normal(300).astype(np.float32))
    low, high = WHOLE.from_histogram(histogram, U8, symmetric=False, parameter=None)
    assert RULE.from_histogram(histogram, U8, symmetric=False, parameter=share) == (low * share, high)


def test_symmetric_codes_weights_and_what_is_never_positive_are_not_cut():
    values = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    for seen, symmetric in ((values, True), (-np.abs(values), False)):
        histogram = histogram_of(seen)
        assert RULE.from_histogram(histogram, I8, symmetric=symmetric, parameter=0.5) == WHOLE.from_histogram(
            histogram, I8, symmetric=symmetric, parameter=None
        )
    groups = values.reshape(10, 30)
    assert (RULE.from_groups(groups, I8, parameter=0.5) == WHOLE.from_groups(groups, I8, parameter=None)).all()


@pytest.mark.parametrize("parameter", ["0", "-0.5", "1.01", "nan", "half"])
def test_a_share_is_above_0_and_at_most_1(parameter):
    with pytest.raises(UsageError, match="does not take the parameter") as error:
        parse_range_rule(f"mse-low:{parameter}")
    assert error.value.slug == "range-rule"


def test_without_a_parameter_it_is_half():
    assert parse_range_rule("mse-low") == (RULE, 0.5)
