import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits._base.errors import NumericsError
from fewbits.numerics.format import Int
from fewbits.numerics.rounding import round_half_even

INTS = st.builds(Int, bits=st.integers(2, 32), signed=st.booleans())


def test_ties_go_to_even():
    # N1 of the fault list.
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=np.float32)
    assert round_half_even(ties).tolist() == [-2, -2, 0, 0, 2, 2]
    assert Int(bits=8, signed=True).encode(ties).tolist() == [-2, -2, 0, 0, 2, 2]


@given(INTS)
def test_the_ends_of_a_format_are_codes_and_what_lies_beyond_saturates(fmt):
    ends = np.array([fmt.min_code, fmt.max_code], dtype=np.float64)
    beyond = np.array([fmt.min_code - 1.0, fmt.max_code + 1.0])
    far = np.array([-np.inf, np.inf])
    assert fmt.encode(ends).tolist() == [fmt.min_code, fmt.max_code]
    assert fmt.encode(beyond).tolist() == [fmt.min_code, fmt.max_code]
    assert fmt.encode(far).tolist() == [fmt.min_code, fmt.max_code]


@given(INTS, st.sampled_from([1e30, 3e38, 2.0**31, 2.0**63]))
def test_huge_float32_saturates_and_never_wraps(fmt, huge):
    # N3: 2**31 and 2**63 are where a cast to int32 or int64 wraps.
    codes = fmt.encode(np.array([-huge, huge], dtype=np.float32))
    top = fmt.max_code if huge >= fmt.max_code else int(huge)
    bottom = fmt.min_code if -huge <= fmt.min_code else -int(huge)
    assert codes.tolist() == [bottom, top]


@given(INTS, st.data())
def test_decode_undoes_encode_on_every_value_of_the_format(fmt, data):
    # float32 holds integers up to 2**24 exactly; wider codes are told by encode's float64 path and not by decode.
    low, high = max(fmt.min_code, -(1 << 24)), min(fmt.max_code, 1 << 24)
    code = data.draw(st.integers(low, high))
    codes = fmt.encode(np.array([code], dtype=np.float64))
    assert codes.dtype == np.dtype(fmt.code_dtype)
    assert fmt.decode(codes).tolist() == [code]


@given(INTS)
def test_a_format_counts_two_to_the_bits_values(fmt):
    assert fmt.max_code - fmt.min_code + 1 == 2**fmt.bits
    assert fmt.stored_bits == fmt.bits
    info = np.iinfo(fmt.code_dtype)
    assert info.min <= fmt.min_code
    assert fmt.max_code <= info.max


@pytest.mark.parametrize("bits", [-1, 0, 1, 33])
def test_a_width_that_is_no_integer_format_is_refused(bits):
    with pytest.raises(NumericsError, match="2 to 32 bits") as caught:
        Int(bits=bits, signed=True)
    assert caught.value.slug == "format-bits"
