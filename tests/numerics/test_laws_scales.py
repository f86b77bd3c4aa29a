"""Laws of scales: finite whatever the tensor, of nothing but their group, and moved by powers of two as the values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fewbits_test_laws import cases, every_entry, few, has_zero, in_its_own, shifted, solved, values_of, where, wide
from hypothesis import given
from hypothesis import strategies as st

import fewbits
from fewbits._base.errors import NumericsError
from fewbits.numerics.floating import Float
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerBlock, PerFlat, PerGroup, PerTensor
from fewbits.numerics.named import ArrayScheme
from fewbits.numerics.qtensor import as_array
from fewbits.numerics.scaling import MIN_SCALE, MeanMagnitude
from fewbits.numerics.scheme import Scheme

LARGEST = 3.4028234663852886e38  # float32's end
ODD = {
    "zero": 0.0, "one": 1.0, "minus": -3.0, "denormal": 1e-44, "smallest": 1e-45, "huge": 3e38, "minus huge": -3e38,
    "largest": LARGEST, "minus largest": -LARGEST,
}  # fmt: skip


@every_entry
def test_scales_and_values_are_finite_whatever_the_tensor(entry):
    for value, mixed in itertools.product(ODD.values(), (False, True)):
        values = np.full((3, wide(entry, 40)), value, np.float32)
        if mixed:
            values[:, ::2] = 0
        tensor = fewbits.quantize_array(values, entry)
        scale, back = np.asarray(as_array(tensor.scale)), np.asarray(tensor.dequantize())
        assert np.all(np.isfinite(scale))
        assert np.all(np.isfinite(back))
        if not solved(entry):
            assert np.all(scale > 0)
        if entry.scheme.scale is None and not solved(entry):
            assert np.all(scale >= MIN_SCALE)  # no denormal scale: some kernels flush it to zero
        if value == 0 and has_zero(entry):
            assert np.all(back == 0)


@pytest.mark.parametrize("stored", ["bf16", "e8m0", "fp16", "ue4m3", "fp32"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_a_scale_that_is_stored_in_few_bits_keeps_the_largest_float32_finite(name, stored):
    for words in ("", "-asym") if isinstance(FORMATS[name], Int) else ("",):
        for value in (LARGEST, 3e38, 2.6e38):
            rows = np.zeros((3, 32), np.float32)
            rows[:, :2] = [[value, 0.0], [-value, 0.0], [value, -value]]
            tensor = fewbits.quantize_array(rows, f"{name}-g32{words}-scale-{stored}")
            assert np.all(np.isfinite(tensor.dequantize())), (words, value)


def order_of_rows_is_free(entry: ArrayScheme) -> bool:
    # Blocks of rows, and runs over the ends of rows, hold other elements in another order; a mean over a tensor adds
    # in another order.
    scheme = entry.scheme
    while isinstance(scheme, Scheme):
        if isinstance(scheme.granularity, PerBlock | PerFlat):
            return False
        if isinstance(scheme.granularity, PerTensor) and isinstance(entry.rule, MeanMagnitude):
            return False
        scheme = scheme.scale  # type: ignore[assignment]
    return True


@where(order_of_rows_is_free)
@few
@given(cases(), st.randoms(use_true_random=False))
def test_permuting_rows_permutes_codes_scales_and_values(entry, make, random):
    values = make(entry)
    order = list(range(len(values)))
    random.shuffle(order)
    ours, theirs = fewbits.quantize_array(values, entry), fewbits.quantize_array(values[order], entry)
    assert np.array_equal(np.asarray(theirs.codes), np.asarray(ours.codes)[order])
    assert np.array_equal(np.asarray(theirs.dequantize()), np.asarray(ours.dequantize())[order])


def wide_enough(entry: ArrayScheme) -> bool:
    # Scales that are stored as 8-bit floats reach denormals within a few powers of two. bf16 under a scale has scales
    # at float32's end: amax / 3e38.
    how = entry.scheme.scale
    return not (isinstance(how, Float) and how.stored_bits == 8) and not (
        entry.scheme.scaled and entry.scheme.format.reach > 1e30
    )


@where(wide_enough)
@few
@given(cases(("normal", "halves")), st.integers(0, 6))
def test_a_factor_of_a_power_of_two_is_a_factor_of_the_scales(entry, make, exponent):
    # Away from the ends of fp16, in which scales and minimums may be stored. The scale of a group of zeros is 1, and so
    # is that of one value above its minimum.
    values = make(entry)
    values[np.abs(values) < 2.0**-4] = 0.5
    factor = np.float32(2.0**exponent)
    one, other = fewbits.quantize_array(values, entry), fewbits.quantize_array(values * factor, entry)
    assert np.array_equal(np.asarray(other.dequantize()), np.asarray(one.dequantize()) * factor)
    if entry.scheme.scaled:
        assert np.array_equal(np.asarray(other.codes), np.asarray(one.codes))
        scale, scaled = np.asarray(as_array(one.scale)), np.asarray(as_array(other.scale))
        free = (scale == 1) & (scaled == 1) if shifted(entry.scheme) else np.zeros(scale.shape, bool)
        assert np.array_equal(scaled[~free], (scale * factor)[~free])


@where(lambda entry: in_its_own(entry.scheme) and entry.divides == 1)
@few
@given(cases())
def test_a_short_last_group_has_the_scale_of_its_own_values(entry, make):
    values = make(entry)
    tensor = fewbits.quantize_array(values, entry)
    assert tensor.shape == values.shape
    assert np.asarray(tensor.dequantize()).shape == values.shape
    granularity = tensor.scheme.granularity
    if isinstance(granularity, PerGroup):
        part = (slice(None), slice(values.shape[1] // granularity.size * granularity.size, None))
    elif isinstance(granularity, PerBlock):
        rows, columns = values.shape[0] // granularity.rows, values.shape[1] // granularity.columns
        part = (slice(rows * granularity.rows, None), slice(columns * granularity.columns, None))
    else:
        return
    if values[part].size:
        alone = fewbits.quantize_array(values[part], entry)
        assert np.array_equal(np.asarray(alone.codes), np.asarray(tensor.codes)[part])
        assert np.array_equal(np.asarray(alone.dequantize()), np.asarray(tensor.dequantize())[part])


@where(lambda entry: isinstance(entry.scheme.granularity, PerFlat) and in_its_own(entry.scheme))
@few
@given(cases())
def test_runs_over_the_ends_of_rows_are_the_groups_of_one_line(entry, make):
    values = make(entry)
    tensor, line = fewbits.quantize_array(values, entry), fewbits.quantize_array(values.reshape(-1), entry)
    assert np.array_equal(np.asarray(tensor.codes).ravel(), np.asarray(line.codes))
    size = entry.scheme.granularity.size  # type: ignore[union-attr]
    rest = values.size % size
    if rest:
        alone = fewbits.quantize_array(values.reshape(-1)[-rest:], entry)
        assert np.array_equal(np.asarray(alone.codes), np.asarray(line.codes)[-rest:])


@where(lambda entry: entry.divides > 1)
@pytest.mark.parametrize("extra", [1, -1, 16])
def test_a_block_that_cannot_be_cut_short_is_refused_by_name(entry, extra):
    with pytest.raises(NumericsError, match=f"{entry.name} has blocks of {entry.divides}") as caught:
        fewbits.quantize_array(np.ones((2, entry.divides + extra), np.float32), entry)
    assert caught.value.slug == "group-size"
    assert "\n" not in str(caught.value)


@where(lambda entry: isinstance(entry.scheme.scale, Scheme))
def test_a_group_of_zeros_leaves_the_scales_of_the_others_alone(entry):
    columns = wide(entry, 512)
    values = values_of("normal", (4, columns), 0) * np.float32(2.0**-10)
    with_zeros = np.concatenate([values, np.zeros((1, columns), np.float32)])
    ours, theirs = fewbits.quantize_array(values, entry), fewbits.quantize_array(with_zeros, entry)
    assert np.array_equal(np.asarray(theirs.dequantize())[:4], np.asarray(ours.dequantize()))
    assert np.all(np.asarray(theirs.dequantize())[4] == 0)
