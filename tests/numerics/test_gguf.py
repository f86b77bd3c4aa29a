"""GGUF's schemes: how good the search is, what it gives on hard blocks, and that every library gives the same."""

from __future__ import annotations

from itertools import pairwise

import array_api_strict as strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbits
from fewbits._base.errors import NumericsError
from fewbits.numerics.block_rounding import stored_fp16
from fewbits.numerics.block_search import SuperBlockSearch, Weighting
from fewbits.numerics.named import Solver, lined_up
from fewbits.numerics.qtensor import QTensor, as_array
from fewbits.numerics.schemes import SCHEMES

# Bits per weight: the bytes of ggml-common.h's structs * 8 / elements.
BITS = {
    "q4_0": 4.5,
    "q4_1": 5.0,
    "q5_0": 5.5,
    "q5_1": 6.0,
    "q8_0": 8.5,
    "q2_k": 2.625,
    "q3_k": 3.4375,
    "q4_k": 4.5,
    "q5_k": 5.5,
    "q6_k": 6.5625,
}
SUPER = [name for name in BITS if name.endswith("_k")]
each = pytest.mark.parametrize("name", BITS)
each_super = pytest.mark.parametrize("name", SUPER)


def hard() -> np.ndarray:
    """Rows of two super-blocks on which quantizers divide by zero, overflow, or wrap."""
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((40, 512)) * np.exp2(rng.integers(-30, 20, (40, 1)))
    rows = drawn.astype(np.float32)
    signs, even = rng.choice([-1.0, 1.0], 512), np.arange(512) % 2 == 0
    rows[0], rows[1], rows[2], rows[3] = 0, -0.0, 3, -3
    rows[4] = np.where(even, 0.0, -0.0)
    rows[5] = np.arange(512) / 2 - 64  # ties
    rows[6], rows[7], rows[8] = 1e-30, 1e-44, np.where(even, 1e-44, -1e-44)
    rows[9], rows[10] = 3e38, np.where(even, 3e38, -3e38)
    rows[11] = np.finfo(np.float32).max * signs
    rows[12:16] = 0
    rows[12, 5], rows[13, 300], rows[14, 77], rows[15, 511] = 1e30, -1e-3, 3.4e38, -1e-44
    rows[16] = np.where(np.arange(512) == 9, 100.0, 1e-3)
    rows[17] = 10 + rng.random(512)  # no zero among them
    rows[18] = -10 - rng.random(512)
    rows[19:23] = rng.standard_normal((4, 512)) * np.array([[1e-6], [1e-7], [1e-8], [1e5]])  # at fp16's ends
    rows[23] = 1e-38 * np.arange(512)
    return rows


def solver_of(name: str) -> Solver:
    rule = SCHEMES[name].weight.rule
    assert isinstance(rule, Solver)
    return rule


def solved(name: str, rows) -> QTensor:
    return solver_of(name).solve(rows, lined_up(SCHEMES[name].weight.scheme))


def weights_of(name: str, rows: np.ndarray) -> np.ndarray:
    """Returns what the search weighs squared errors by: |value| + its mean over the sub-block, float64."""
    groups = np.abs(rows.astype(np.float64)).reshape(-1, SCHEMES[name].weight.scheme.granularity.size)
    return (groups + groups.mean(axis=1, keepdims=True)).reshape(rows.shape)


def weighted_error(name: str, rows: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Returns the weighted squared error of each super-block."""
    values = fewbits.quantize_array(rows, name).dequantize() if values is None else values
    miss = values.astype(np.float64) - rows
    return (weights_of(name, rows) * miss**2).reshape(-1, 256).sum(axis=1)


@each
def test_a_weight_takes_as_many_bits_as_in_the_file(name):
    assert fewbits.quantize_array(np.ones((2, 512), np.float32), name).bits_per_weight == BITS[name]


# --- how good ------------------------------------------------------------------------------------------------------


def test_more_bits_give_less_error():
    rows = np.random.default_rng(1).standard_normal((16, 512)).astype(np.float32)
    errors = [
        np.square(fewbits.quantize_array(rows, name).dequantize() - rows).sum()
        for name in ("q6_k", "q5_k", "q4_k", "q3_k", "q2_k")
    ]
    # One bit less is about four times the error; twice is far from any chance.
    assert all(2 * less < more for less, more in pairwise(errors))


def plainly(name: str, rows: np.ndarray) -> np.ndarray:
    """Returns what rounding alone gives: extremes to the ends, the largest sub-scale to its largest code. float64."""
    bits, size, top = {
        "q2_k": (2, 16, 15), "q3_k": (3, 16, -32), "q4_k": (4, 32, 63), "q5_k": (5, 32, 63), "q6_k": (6, 16, -128)
    }[name]  # fmt: skip
    x = rows.astype(np.float64).reshape(-1, 256 // size, size)

    def stored(wanted):
        largest = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=1)[:, None], axis=1)
        outer = stored_fp16((largest / top).astype(np.float32)).astype(np.float64)
        low, high = (0, top) if top > 0 else (top, -top - 1)
        return outer * np.clip(np.rint(wanted / np.where(outer == 0, np.inf, outer)), low, high)

    if top > 0:
        low = np.minimum(x.min(axis=2), 0)
        scale, minimum, ends = stored((x.max(axis=2) - low) / (2**bits - 1)), stored(-low), (0, 2**bits - 1)
    else:
        largest = np.take_along_axis(x, np.abs(x).argmax(axis=2)[..., None], axis=2)[..., 0]
        scale, minimum, ends = (
            stored(largest / -(2 ** (bits - 1))),
            0 * largest,
            (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        )
    scale, minimum = scale[..., None], minimum[..., None]
    codes = np.clip(np.rint((x + minimum) / np.where(scale == 0, np.inf, scale)), *ends)
    return (codes * scale - minimum).reshape(rows.shape)


@each_super
@settings(max_examples=16, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["normal", "laplace", "student", "outlier", "shifted", "few values"]),
    st.floats(-12, 12),
)
def test_a_search_is_never_worse_than_rounding_alone(name, seed, kind, power):
    rng = np.random.default_rng(seed)
    rows = {
        "normal": lambda: rng.standard_normal((4, 256)),
        "laplace": lambda: rng.laplace(size=(4, 256)),
        "student": lambda: rng.standard_t(2, (4, 256)),
        "outlier": lambda: rng.standard_normal((4, 256)) * np.where(rng.random((4, 256)) < 0.01, 50, 1),
        "shifted": lambda: rng.standard_normal((4, 256)) + 3,
        "few values": lambda: rng.integers(-2, 3, (4, 256)),
    }[kind]()
    rows = (rows * 2.0**power).astype(np.float32)
    plain = weighted_error(name, rows, plainly(name, rows))
    # The search keeps the better of both by sums in float32: 256 terms, each good to a few 2**-24 of values that err by
    # half a step of up to 2**6: 2**-24 * 2**7 * a few. Where both are exact but for that, an absolute part remains.
    room = 1e-4 * plain + 1e-12 * (weights_of(name, rows) * rows.astype(np.float64) ** 2).reshape(-1, 256).sum(axis=1)
    assert np.all(weighted_error(name, rows) <= plain + room)


@each_super
def test_a_search_beats_rounding_alone_clearly_on_normal_values(name):
    rows = np.random.default_rng(2).standard_normal((16, 512)).astype(np.float32)
    # Theory of what is lost to extremes: a sub-block's widest value sets the step of all. Measured 0.70 to 0.87.
    assert weighted_error(name, rows).sum() < 0.95 * weighted_error(name, rows, plainly(name, rows)).sum()


@pytest.mark.parametrize("name", ["q3_k", "q6_k"])
def test_a_search_comes_near_the_best_that_real_scales_could_give(name):
    # One scale a sub-block, tried at 2,000 sizes and both signs: no file format can do better with these codes.
    rows = np.random.default_rng(3).standard_normal((4, 256)).astype(np.float32)
    low = {"q3_k": -4, "q6_k": -32}[name]
    x = rows.astype(np.float64).reshape(-1, 16)
    best = np.full(len(x), np.inf)
    for share in np.linspace(0.4, 1.3, 2000):
        for sign in (-1, 1):
            scale = sign * share * np.abs(x).max(axis=1, keepdims=True) / -low
            codes = np.clip(np.rint(x / scale), low, -low - 1)
            fitted = (x * codes).sum(axis=1, keepdims=True) / np.maximum((codes**2).sum(axis=1, keepdims=True), 1)
            best = np.minimum(best, ((x - codes * fitted) ** 2).sum(axis=1))
    # Sub-scales of 6 and 8 bits miss a scale by up to 1/64 and 1/256 of the largest.
    search = SuperBlockSearch(weighting=Weighting.EQUAL)
    values = search.solve(rows, lined_up(SCHEMES[name].weight.scheme)).dequantize()
    assert best.sum() <= ((values.astype(np.float64) - rows) ** 2).sum() <= 1.2 * best.sum()


@pytest.mark.parametrize("name", ["q4_k", "q5_k", "q6_k"])
def test_small_values_find_a_scale_that_fp16_has(name):
    # Around 1e-4, d = largest scale / largest sub-scale is a denormal of a few 2**-24, and rounding it costs several
    # per cent of every value. A larger d under smaller sub-scales costs less. Measured: 0.01 to 0.6 of the error.
    rows = (np.random.default_rng(7).standard_normal((16, 512)) * 1e-4).astype(np.float32)
    assert weighted_error(name, rows).sum() < 0.8 * weighted_error(name, rows, plainly(name, rows)).sum()


@each_super
def test_no_other_code_lies_nearer_under_the_stored_scales(name):
    rows = np.random.default_rng(4).standard_normal((4, 512)).astype(np.float32)
    q = fewbits.quantize_array(rows, name)
    fmt, size = q.scheme.format, 512 // q.scale.shape[1]
    scale = np.repeat(np.asarray(as_array(q.scale)), size, axis=1).astype(np.float64)
    offset = 0.0 if q.offset is None else np.repeat(np.asarray(as_array(q.offset)), size, axis=1).astype(np.float64)
    codes = q.codes.astype(np.float64)
    here = np.abs(codes * scale - offset - rows)
    for step in (-1, 1):
        other = np.clip(codes + step, fmt.min_value, fmt.max_value)
        # (x + offset) / scale is rounded twice in float32: near a tie either code is right.
        assert np.all(here <= np.abs(other * scale - offset - rows) + 2.0**-22 * (np.abs(rows) + np.abs(offset)))


def test_a_weighted_search_lowers_the_error_that_it_weighs():
    rows = np.random.default_rng(5).standard_t(4, (16, 512)).astype(np.float32)
    scheme = lined_up(SCHEMES["q4_k"].weight.scheme)
    weighed = {}
    for weighting in Weighting:
        values = SuperBlockSearch(weighting=weighting).solve(rows, scheme).dequantize()
        weighed[weighting] = np.square(values - rows).sum(), weighted_error("q4_k", rows, values).sum()
    assert weighed[Weighting.EQUAL][0] < weighed[Weighting.MAGNITUDE][0]
    assert weighed[Weighting.MAGNITUDE][1] < weighed[Weighting.EQUAL][1]


# --- hard blocks ---------------------------------------------------------------------------------------------------


@each
def test_hard_blocks_give_finite_values_and_codes_of_the_format(name):
    rows = hard()
    q = fewbits.quantize_array(rows, name)
    values = q.dequantize()
    fmt = q.scheme.format
    assert np.all(np.isfinite(values))
    assert q.codes.min() >= fmt.min_value and q.codes.max() <= fmt.max_value
    assert np.all(values[[0, 1, 4]] == 0)
    assert np.all(values[[6, 7, 8]] == 0), "fp16 has no scale for these"
    # A sign is never lost, so nothing wrapped: what is far from 0 keeps its side.
    far = np.abs(rows) >= np.abs(rows).reshape(-1, 16).max(axis=1).repeat(16).reshape(rows.shape)
    far &= (np.abs(rows) > 1e-3) & (np.abs(rows) < 1e37)
    assert np.all(np.sign(values[far]) == np.sign(rows[far]))


@each
def test_constant_blocks_keep_their_value(name):
    for value in (3.0, -3.0, 0.5, -1000.0):
        values = fewbits.quantize_array(np.full((1, 256), value, np.float32), name).dequantize()
        # fp16 scales round by 2**-11 at most, as long as they are no denormals; a minimum beside them by as much again.
        assert np.all(np.abs(values - np.float32(value)) <= 2.0**-10 * abs(value))


@each
def test_values_beyond_fp16s_scales_saturate(name):
    q = fewbits.quantize_array(np.full((1, 256), 3e38, np.float32), name)
    largest = {"q4_0": 8, "q4_1": 16, "q5_0": 16, "q5_1": 32, "q8_0": 127}
    subs = {"q2_k": 3 * 15, "q3_k": 4 * 32, "q4_k": 15 * 63, "q5_k": 31 * 63, "q6_k": 32 * 128}
    assert np.all(q.dequantize() == np.float32(65504) * (largest | subs)[name])


@each_super
def test_a_single_outlier_is_kept(name):
    rows = np.zeros((1, 256), np.float32)
    rows[0, 100] = -2.0
    values = fewbits.quantize_array(rows, name).dequantize()
    assert abs(values[0, 100] + 2) <= 2.0**-10 * 2
    # Where there is a minimum, zero is a difference of two products, each rounded as above.
    rest = np.delete(values[0], 100)
    assert np.all(np.abs(rest) <= (2.0**-10 * 2 if SCHEMES[name].weight.scheme.minimum else 0))


# --- the same everywhere -------------------------------------------------------------------------------------------


@each
def test_array_api_strict_gives_the_same_bits(name):
    ours, theirs = solved(name, hard()), solved(name, strict.asarray(hard()))
    assert ours.same(theirs)


@pytest.mark.torch
@each
def test_torch_gives_the_same_bits(name):
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    rows = hard()
    ours = fewbits.quantize_array(rows, name)
    theirs = fewbits.quantize_array(torch.from_numpy(rows), name)
    assert isinstance(theirs.codes, torch.Tensor)
    assert ours.same(theirs)
    assert np.asarray(ours.dequantize()).tobytes() == theirs.dequantize().numpy().tobytes()


@each
def test_codes_do_not_depend_on_the_tile_or_on_the_other_rows(name, monkeypatch):
    whole = fewbits.quantize_array(hard(), name)
    monkeypatch.setattr("fewbits.numerics.quantizing.TILE", 1024)
    assert fewbits.quantize_array(hard(), name).same(whole)
    assert np.array_equal(fewbits.quantize_array(hard()[20:21], name).codes, whole.codes[20:21])


@each
def test_groups_lie_along_the_axis_that_is_named(name):
    rows = hard()
    along, across = fewbits.quantize_array(rows, name), fewbits.quantize_array(rows.T, name, axis=0)
    assert np.array_equal(along.codes, across.codes.T)
    assert np.array_equal(along.dequantize(), across.dequantize().T)


@each
@pytest.mark.parametrize("power", [-3, 5])
def test_values_times_a_power_of_two_have_the_same_codes(name, power):
    rows = np.random.default_rng(6).standard_normal((4, 512)).astype(np.float32)
    a, b = (fewbits.quantize_array(rows * np.float32(s), name) for s in (1, 2.0**power))
    assert np.array_equal(a.codes, b.codes)
    assert np.array_equal(a.dequantize() * np.float32(2.0**power), b.dequantize())


@each
def test_rows_that_are_not_made_of_whole_blocks_are_refused(name):
    size = SCHEMES[name].weight.divides
    with pytest.raises(NumericsError, match=rf"blocks of {size}.*pad it to {2 * size}.*\[group-size\]"):
        fewbits.quantize_array(np.ones((2, size + 8), np.float32), name)
