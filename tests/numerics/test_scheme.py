import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits._base.errors import FewbitsError
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.scheme import Scheme, parse_scheme

GRANULARITIES = st.one_of(
    st.just(PerTensor()),
    st.builds(PerChannel, st.integers(-4, 4)),
    st.builds(PerGroup, st.integers(-4, 4), st.integers(1, 4096)),
)
SCHEMES = st.builds(
    Scheme,
    format=st.sampled_from(sorted(FORMATS)).map(FORMATS.__getitem__),
    granularity=GRANULARITIES,
    symmetric=st.booleans(),
)


@given(SCHEMES)
def test_the_name_of_a_scheme_reads_back_as_itself(scheme):
    assert parse_scheme(scheme.name) == scheme


@pytest.mark.parametrize(
    "text",
    ["", "int8", "int8 per-tensor", "int8 per-tensor lopsided", "int9x per-tensor symmetric", "int8 per-row symmetric",
     "int8  per-tensor symmetric", "int8 per-channel(a) symmetric", "int8 per-group(0, 0) symmetric"],
)  # fmt: skip
def test_words_that_are_no_scheme_are_refused_in_one_line(text):
    with pytest.raises(FewbitsError) as caught:
        parse_scheme(text)
    assert "\n" not in str(caught.value)
