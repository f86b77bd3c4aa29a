"""Laws of the computation: tiles, the layout of memory, the axis and the width of the input change nothing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from fewbits_test_laws import Grid, cases, every_entry, few, in_its_own, solved, values_of, where, wide
from hypothesis import given
from hypothesis import strategies as st

import fewbits
from fewbits._base.errors import NumericsError
from fewbits.numerics.granularity import PerBlock, PerFlat


@every_entry
def test_the_size_of_a_tile_changes_nothing(monkeypatch, entry):
    shape = (5, wide(entry, 70))
    values = values_of("spread", shape, 0)
    whole = fewbits.quantize_array(values, entry)
    real = np.asarray(whole.dequantize())
    for tile in (7, 300):
        monkeypatch.setattr("fewbits.numerics.blocks.TILE", tile)
        monkeypatch.setattr("fewbits.numerics.quantizing.TILE", tile)
        cut = fewbits.quantize_array(values, entry)
        assert cut.same(whole)
        assert np.array_equal(np.asarray(cut.dequantize()), real)


def laid_out(values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns arrays of the same values in other places of memory."""
    wide = np.full((values.shape[0] * 2, values.shape[1] * 3), np.float32(np.nan))
    wide[::2, ::3] = values
    readonly = values.copy()
    readonly.flags.writeable = False
    return {
        "Fortran order": np.asfortranarray(values),
        "transposed twice": values.T.copy().T,
        "every third column of every second row": wide[::2, ::3],
        "backwards": values[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": readonly,
        "big-endian": values.astype(">f4"),
        "unaligned": np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:].view(np.float32).reshape(values.shape),
    }


@every_entry
def test_the_layout_of_memory_changes_nothing_and_the_input_stays(entry):
    values = values_of("spread", (5, wide(entry, 70)), 1)
    kept = values.copy()
    expected = fewbits.quantize_array(values, entry)
    for words, other in laid_out(values).items():
        assert fewbits.quantize_array(other, entry).same(expected), words
    assert np.array_equal(values, kept)


@where(lambda entry: not isinstance(entry.scheme.granularity, PerBlock | PerFlat) and in_its_own(entry.scheme))
@few
@given(cases())
def test_the_other_axis_is_the_transposed_matrix(entry, make):
    values = make(entry)
    along = fewbits.quantize_array(values, entry)
    across = fewbits.quantize_array(np.ascontiguousarray(values.T), entry, axis=0)
    assert np.array_equal(np.asarray(across.codes).T, np.asarray(along.codes))
    assert np.array_equal(np.asarray(across.dequantize()).T, np.asarray(along.dequantize()))


@every_entry
def test_other_widths_are_quantized_as_their_float32(entry):
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        values = values_of("normal", (3, wide(entry, 70)), 2).astype(dtype)
        assert fewbits.quantize_array(values, entry).same(fewbits.quantize_array(values.astype(np.float32), entry))


@where(lambda entry: not solved(entry))
@few
@given(cases(), st.integers(0, 1000))
def test_rounding_at_random_takes_one_of_the_two_neighbours_under_the_same_scales(entry, make, seed):
    values = make(entry)
    plain, drawn = fewbits.quantize_array(values, entry), fewbits.quantize_array(values, entry, seed=seed)
    assert drawn.params.same(plain.params)
    assert drawn.same(fewbits.quantize_array(values, entry, seed=seed))
    grid, exact = Grid(plain), values.astype(np.float64)
    low, high = grid.around(exact)
    back = np.asarray(drawn.dequantize()).astype(np.float64)
    # Within a rounding of a value of the format the quotient may fall on its other side: then the one beyond it.
    slack = grid.slack(exact)
    taken = (np.abs(back - low) <= slack) | (np.abs(back - high) <= slack)
    on_a_value = np.minimum(np.abs(exact - low), np.abs(exact - high)) <= slack
    assert np.all(taken | on_a_value)


@where(solved)
def test_a_search_refuses_a_seed(entry):
    with pytest.raises(NumericsError) as caught:
        fewbits.quantize_array(np.ones((1, entry.divides), np.float32), entry, seed=0)
    assert caught.value.slug == "seed-unused"
