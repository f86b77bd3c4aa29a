from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbits._base.errors import NumericsError
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor, parse_granularity

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


@st.composite
def shaped(draw):
    """Draws a shape and a granularity that fits it; negative axes and sizes that do not divide included."""
    shape = draw(SHAPES)
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    kind = draw(st.sampled_from(["tensor", "channel", "group"]))
    if kind == "tensor":
        return shape, PerTensor()
    if kind == "channel":
        return shape, PerChannel(axis)
    return shape, PerGroup(axis, draw(st.integers(1, 9)))


@given(shaped())
def test_the_name_of_a_granularity_reads_back_as_itself(case):
    assert parse_granularity(case[1].name) == case[1]


@given(shaped())
def test_every_element_lies_in_the_row_of_the_scale_that_expand_gives_it(case):
    # N14: elements behind the last whole group are kept, in a group of their own.
    shape, granularity = case
    scales = granularity.scale_shape(shape)
    number = np.arange(prod(scales), dtype=np.float32).reshape(scales)
    values = np.arange(1, prod(shape) + 1, dtype=np.float32).reshape(shape)
    owner = np.broadcast_to(granularity.expand(number, shape), shape)
    rows = granularity.to_groups(values)
    assert rows.shape[0] == prod(scales)
    for i, row in enumerate(rows):
        assert sorted(row[row != 0].tolist()) == sorted(values[owner == i].tolist())


@given(shaped())
def test_padding_is_shorter_than_a_group_and_zero(case):
    shape, granularity = case
    rows = granularity.to_groups(np.ones(shape, dtype=np.float32))
    assert rows.sum() == prod(shape)
    assert np.all(rows[:, 0] == 1), "a group of nothing but padding"


@given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
def test_permuting_channels_permutes_the_rows(order, seed):
    # N13, as far as the layout goes; test_qtensor.py has the codes.
    values = np.random.default_rng(seed).standard_normal((6, 5)).astype(np.float32)
    assert np.array_equal(PerChannel(0).to_groups(values[order]), PerChannel(0).to_groups(values)[order])


@pytest.mark.parametrize("granularity", [PerChannel(2), PerChannel(-3), PerGroup(2, 4)])
def test_an_axis_that_the_shape_lacks_is_refused(granularity):
    with pytest.raises(NumericsError) as caught:
        granularity.scale_shape((3, 4))
    assert caught.value.slug == "axis-out-of-range"


def test_an_empty_group_is_refused():
    with pytest.raises(NumericsError) as caught:
        PerGroup(0, 0)
    assert caught.value.slug == "group-size"


@pytest.mark.parametrize(
    "text",
    ["", "per-tensor(0)", "per-channel", "per-channel(x)", "per-channel(0", "per-channel(0))", "per-channel(0, 1)",
     "per-group(0)", "per-group(0, 1.5)", "per-channel(0) ", "per-block(1)", "per-channel()", "per-channel(1_0)"],
)  # fmt: skip
def test_words_that_are_no_granularity_are_refused_by_name(text):
    with pytest.raises(NumericsError, match="granularity") as caught:
        parse_granularity(text)
    assert caught.value.slug == "granularity"
