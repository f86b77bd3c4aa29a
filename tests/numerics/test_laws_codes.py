"""Laws of codes: each is the nearest under its scale, in order, saturating; what has no code is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fewbits_test_laws import ENTRIES, Grid, cases, every_entry, few, has_zero, shifted, solved, values_of, where, wide
from hypothesis import given

import fewbits
from fewbits._base.errors import NumericsError
from fewbits.numerics.codebook import Codebook
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.named import FULL_RANGE, ArrayScheme
from fewbits.numerics.qtensor import quantize
from fewbits.numerics.scaling import FullRange
from fewbits.numerics.scheme import Scheme


def test_the_entries_hold_every_kind_of_format_and_granularity():
    kinds = {type(entry.scheme.format) for entry in ENTRIES.values()}
    assert {Int, Codebook} < kinds
    assert {type(fmt) for fmt in FORMATS.values() if isinstance(fmt, Format)} >= kinds
    assert {type(entry.scheme.granularity).__name__ for entry in ENTRIES.values()} == {
        "PerTensor", "PerChannel", "PerToken", "PerGroup", "PerBlock", "PerFlat",
    }  # fmt: skip
    assert FULL_RANGE in {entry.rule for entry in ENTRIES.values()}


@where(lambda entry: not solved(entry))
@few
@given(cases())
def test_every_value_becomes_the_nearest_that_its_scale_offers(entry, make):
    values = make(entry)
    tensor = fewbits.quantize_array(values, entry)
    grid, exact = Grid(tensor), values.astype(np.float64)
    low, high = grid.around(exact)
    best = np.minimum(np.abs(exact - low), np.abs(exact - high))
    error = np.abs(np.asarray(tensor.dequantize()).astype(np.float64) - exact)
    assert np.all(error <= best + grid.slack(exact))
    # Inside the range the nearest is at most half a gap away: scale / 2 for integers.
    inside = (exact >= grid.low) & (exact <= grid.high)
    gap = grid.scale if isinstance(grid.format, Int) else np.abs(high - low)
    assert np.all((error <= gap / 2 + grid.slack(exact))[inside])


def full_range(entry: ArrayScheme) -> bool:
    return isinstance(entry.rule, FullRange) and entry.scheme.scaled


@where(lambda entry: full_range(entry) and entry.scheme.scale is None and not shifted(entry.scheme))
@few
@given(cases())
def test_nothing_saturates_under_the_full_range(entry, make):
    values = make(entry).astype(np.float64)
    grid = Grid(fewbits.quantize_array(values, entry))
    # An integer zero point is rounded: the range moves by up to half a step. A scale is rounded to float32.
    moved = 0.0 if entry.scheme.symmetric else 0.5 * grid.scale
    slack = moved + 2.0**-23 * np.maximum(np.abs(grid.low), np.abs(grid.high))
    assert np.all(values >= grid.low - slack)
    assert np.all(values <= grid.high + slack)


@where(lambda entry: shifted(entry.scheme) and not solved(entry))
@few
@given(cases())
def test_a_minimum_and_a_maximum_keep_their_place_within_a_step(entry, make):
    values = make(entry)
    tensor = fewbits.quantize_array(values, entry)
    error = np.abs(np.asarray(tensor.dequantize()).astype(np.float64) - values)
    # Scales, minimums and zero points are stored in few bits (11 for fp16, 8 for a nested scale): the whole range, and
    # the offset from zero, are off by that share of them.
    grid = Grid(tensor)
    steps = grid.grid[-1] - grid.grid[0]
    stored = 2.0**-8 if isinstance(entry.scheme.scale, Scheme) else 2.0**-11
    biggest = np.abs(np.asarray(values)).max() + np.abs(grid.offset).max() + np.abs(grid.zero * grid.scale).max()
    assert np.all(
        error <= grid.scale * np.max(np.diff(grid.grid)) + stored * (2 * biggest + 2 * steps * grid.scale.max())
    )


@every_entry
@few
@given(cases())
def test_quantizing_what_was_dequantized_changes_nothing(entry, make):
    first = fewbits.quantize_array(make(entry), entry)
    values = first.dequantize()
    second = quantize(values, first.params)
    grid, exact = Grid(first), np.asarray(values).astype(np.float64)
    # Where a minimum lies so far from zero that float32 cannot tell the neighbours in a difference, they may change.
    told = grid.slack(exact) < grid.gap(exact) / 2
    if has_zero(entry):
        told |= exact == 0
    assert np.all(told) or entry.scheme.minimum is not None or np.any(grid.scale == 0)
    assert np.array_equal(np.asarray(second.dequantize())[told], np.asarray(values)[told])
    if not solved(entry):
        decode = grid.format.decode if shifted(entry.scheme) else np.asarray  # -0 less a minimum is +0 less it
        assert np.array_equal(decode(np.asarray(second.codes)[told]), decode(np.asarray(first.codes)[told]))


@every_entry
@few
@given(cases())
def test_of_two_values_under_one_scale_the_larger_does_not_become_the_smaller(entry, make):
    values = make(entry)
    tensor = fewbits.quantize_array(values, entry)
    granularity = tensor.scheme.granularity
    shape = granularity.scale_shape(values.shape)
    number = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    owner = np.broadcast_to(np.asarray(granularity.expand(number, values.shape)), values.shape).ravel()
    order = np.lexsort((values.ravel(), owner))
    back = np.asarray(tensor.dequantize()).ravel()[order]
    same = np.diff(owner[order]) == 0
    assert np.all(np.diff(back)[same] >= 0)


@every_entry
def test_what_lies_beyond_the_ends_saturates_and_never_wraps(entry):
    first = fewbits.quantize_array(values_of("normal", (3, wide(entry, 40)), 0), entry)
    grid, scheme = Grid(first), first.scheme
    if float(grid.grid[-1]) > 1e30:
        return  # bf16 holds them
    for sign, far in itertools.product((1.0, -1.0), (1e30, 3e38)):
        values = np.full(first.shape, sign * far, np.float32)
        codes = np.asarray(quantize(values, first.params).codes)
        # Under a negative scale, as GGUF's readers know them, the ends change places.
        up = (sign > 0) == (grid.scale > 0)
        ends = np.where(up, grid.grid[-1], grid.grid[0]).astype(np.float32)
        kept = grid.scale != 0
        assert np.array_equal(np.asarray(scheme.format.decode(codes))[kept], ends[kept])


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_format_saturates_at_1e30_and_at_infinity(name):
    fmt = FORMATS[name]
    far = np.array([3e38, np.inf, np.inf], np.float32) if fmt.max_value > 1e30 else np.array([1e30, np.inf, 3e38])
    ends = [fmt.decode(fmt.encode(np.array([end], np.float32)))[0] for end in (fmt.min_value, fmt.max_value)]
    up, down = (np.asarray(fmt.decode(fmt.encode((sign * far).astype(np.float32)))) for sign in (1.0, -1.0))
    assert set(up[1:2].tolist()) == {ends[1]}
    assert set(down[1:2].tolist()) == {ends[0]}
    if fmt.max_value <= 1e30:
        assert set(up.tolist()) == {ends[1]}
        assert set(down.tolist()) == {ends[0]}


@every_entry
def test_nan_and_infinity_are_refused_in_one_line_with_their_place(entry):
    for bad in (np.nan, np.inf, -np.inf):
        values = values_of("normal", (3, wide(entry, 12)), 0)
        values[1, 7] = values[2, 3] = bad
        with pytest.raises(NumericsError, match=r"2 NaN or infinite values, the first at index \[1, 7\]") as caught:
            fewbits.quantize_array(values, entry)
        assert caught.value.slug == "nonfinite-values"
        assert "\n" not in str(caught.value)


@where(has_zero)
@few
@given(cases())
def test_zero_stays_zero(entry, make):
    values = make(entry)
    values[np.random.default_rng(0).random(values.shape) < 0.3] = 0
    values.ravel()[0] = -0.0
    back = np.asarray(fewbits.quantize_array(values, entry).dequantize())
    assert np.all(back[values == 0] == 0)
