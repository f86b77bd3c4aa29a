"""Laws that every scheme keeps, listed in the catalog or spelled by a shorthand, through ``fewbits.quantize_array``.

Each is asked of every entry on drawn shapes and values; where a law cannot hold for an entry, a predicate says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fewbits
from fewbits._base.errors import NumericsError
from fewbits.numerics.codebook import Codebook
from fewbits.numerics.floating import Float
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerBlock, PerFlat, PerGroup, PerTensor
from fewbits.numerics.named import FULL_RANGE, ArrayScheme, Solver
from fewbits.numerics.qtensor import QTensor, as_array, quantize
from fewbits.numerics.scaling import MIN_SCALE, FullRange, MeanMagnitude
from fewbits.numerics.scheme import Scheme, parse_scheme
from fewbits.numerics.schemes import SCHEMES
from fewbits.numerics.shorthand import rule_of

SHORTHANDS = (
    "int8", "uint8", "uint8-asym", "int16", "uint16-asym", "int2-channel", "int5-channel", "uint7-channel-asym",
    "int8-token", "uint3-token-asym", "int4-g32", "int3-g7", "uint4-g32-asym", "uint2-g16-asym", "uint6-g5-asym",
    "int4-f50", "uint4-f33-asym", "int8-b4x8", "uint4-b3x5-asym", "int4-g32-scale-fp16", "int4-g16-scale-bf16",
    "uint4-g32-asym-scale-fp16", "int8-channel-scale-fp16", "int4-g32-scale-e8m0", "int4-g16-scale-ue4m3",
    "fp8_e4m3", "fp8_e5m2-channel", "fp8_e4m3-token", "fp6_e3m2-g32", "fp6_e2m3-b2x2", "fp4_e2m1-g16", "fp4_e2m1-f24",
    "fp4_e2m1-g16-scale-fp8_e4m3", "mxint8-g8", "mxint8-channel", "nf4-g64", "nf4-f64-scale-bf16", "binary-g32",
    "binary", "ternary-channel", "ternary-g10", "fp16-channel", "bf16-g4",
)  # fmt: skip
# What no shorthand spells: minimums, real zero points, scales of scales.
WORDS = {
    "min": "uint4 per-group(-1, 32) asymmetric, scale fp16, minimum fp16",
    "min-float32": "uint3 per-channel(0) asymmetric, minimum fp32",
    "min-nested": "uint4 per-group(-1, 8) asymmetric, scale (uint8 per-token(-1) symmetric), minimum fp32",
    "real-zero": "uint4 per-group(-1, 16) asymmetric, zero_point fp16",
    "fp4-min": "fp4_e2m1 per-group(-1, 16) asymmetric, minimum fp32",
    "nested-twice": "int4 per-group(-1, 8) symmetric, scale (fp8_e4m3 per-token(-1) symmetric, scale (bf16 per-tensor "
    "symmetric))",
}


def _own(name: str, words: str) -> ArrayScheme:
    scheme = parse_scheme(words)
    return ArrayScheme(name=name, scheme=scheme, rule=rule_of(scheme.format))


ENTRIES: dict[str, ArrayScheme] = {
    **{name: SCHEMES.of_array(name) for name in (*SCHEMES, *SHORTHANDS)},
    **{f"{name}, activations": s.activation for name, s in SCHEMES.items() if s.activation not in (None, s.weight)},
    **{name: _own(name, words) for name, words in WORDS.items()},
}


def fault(words: str) -> pytest.MarkDecorator:
    """Returns the mark of a law that is known to be broken; when it holds again, the mark fails."""
    return pytest.mark.xfail(strict=True, raises=(AssertionError, RuntimeWarning), reason=words)


def where(holds: Callable[[ArrayScheme], bool], faults: dict[str, str] | None = None) -> pytest.MarkDecorator:
    """Returns the parametrization over the entries for which a law can hold; faults: those that break it, and why."""
    known = faults or {}
    marks = {name: [fault(known[name])] if name in known else [] for name in ENTRIES}
    cases = [pytest.param(entry, id=name, marks=marks[name]) for name, entry in ENTRIES.items() if holds(entry)]
    return pytest.mark.parametrize("entry", cases)


every_entry = where(lambda entry: True)
few = settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.too_slow])


def solved(entry: ArrayScheme) -> bool:
    return isinstance(entry.rule, Solver)


def has_zero(entry: ArrayScheme) -> bool:
    """Returns whether zero is a value whatever the scale."""
    return entry.scheme.format.zero_code is not None and not shifted(entry.scheme)


def shifted(scheme: Scheme) -> bool:
    """Returns whether zero need not be a value: a minimum, or a zero point that is no code."""
    return scheme.minimum is not None or (scheme.zero_point is not None and not isinstance(scheme.zero_point, Int))


def wide(entry: ArrayScheme, columns: int) -> int:
    """Returns the next count of columns that the entry takes."""
    return -(-columns // entry.divides) * entry.divides


KINDS = ("normal", "spread", "halves", "outlier", "positive", "far from zero", "few values")


def values_of(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(shape)
    if kind == "spread":
        drawn *= np.exp2(rng.integers(-12, 12, shape))
    elif kind == "halves":
        drawn = rng.integers(-40, 41, shape) / 2
    elif kind == "outlier":
        drawn.reshape(-1)[rng.integers(drawn.size)] = 1e4
    elif kind == "positive":
        drawn = np.abs(drawn)
    elif kind == "far from zero":
        drawn = drawn / 8 + 3
    elif kind == "few values":
        drawn = rng.choice([-1.5, 0.0, 0.25, 6.0], shape)
    return drawn.astype(np.float32)


@st.composite
def cases(draw, kinds: tuple[str, ...] = KINDS) -> Callable[[ArrayScheme], np.ndarray]:
    """Draws what makes a matrix for an entry: its columns are a multiple of what the entry asks for."""
    rows, columns, blocks = draw(st.integers(1, 6)), draw(st.integers(1, 80)), draw(st.integers(1, 2))
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**32 - 1))

    def make(entry: ArrayScheme) -> np.ndarray:
        return values_of(kind, (rows, blocks * entry.divides if entry.divides > 1 else columns), seed)

    return make


def expanded(tensor: QTensor, stored: object) -> np.ndarray:
    """Returns scales, zero points or offsets as float64 in the tensor's shape."""
    if stored is None:
        return np.zeros(tensor.shape)
    array = np.asarray(as_array(stored))
    whole = tensor.scheme.granularity.expand(array, tensor.shape)
    return np.broadcast_to(np.asarray(whole), tensor.shape).astype(np.float64)


class Grid:
    """The values that each element could have become, in float64: (grid - zero) * scale - offset."""

    def __init__(self, tensor: QTensor) -> None:
        self.scale, self.zero = expanded(tensor, tensor.scale), expanded(tensor, tensor.zero_point)
        self.offset, self.format = expanded(tensor, tensor.offset), tensor.scheme.format
        self.grid = self.format.grid.astype(np.float64)
        self.low = (self.grid[0] - self.zero) * self.scale - self.offset
        self.high = (self.grid[-1] - self.zero) * self.scale - self.offset

    def around(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the values below and above each, the same twice beyond the ends."""
        wanted = (values + self.offset) / np.where(self.scale == 0, np.inf, self.scale) + self.zero
        wanted = np.clip(wanted, self.grid[0], self.grid[-1])
        place = np.clip(np.searchsorted(self.grid, wanted, side="right") - 1, 0, len(self.grid) - 2)
        low, high = (self.grid[p] for p in (place, place + 1))
        return (low - self.zero) * self.scale - self.offset, (high - self.zero) * self.scale - self.offset

    def slack(self, values: np.ndarray) -> np.ndarray:
        """Returns by how much float32 may miss the nearest.

        Encoding: (v + offset), its quotient, and + zero are each rounded, 2**-24 of what they give; a choice between
        two neighbours by a quotient that is off by d steps is off by at most 2 d. Decoding rounds the product of one
        of the neighbours, and the difference. Below 2**-126 a rounding is 2**-150 instead.
        """
        shift = np.abs(self.offset) + np.abs(self.zero * self.scale)
        low, high = self.around(values)
        return (
            2.0**-24 * (6 * (np.abs(values) + shift) + 2 * (np.maximum(np.abs(low), np.abs(high)) + shift)) + 2.0**-146
        )

    def gap(self, values: np.ndarray) -> np.ndarray:
        """Returns the distance of what lies on the grid from the nearest other value of it."""
        wanted = (values + self.offset) / np.where(self.scale == 0, np.inf, self.scale) + self.zero
        place = np.argmin(np.abs(self.grid - wanted[..., None]), axis=-1) if len(self.grid) < 300 else None
        if place is None:
            place = np.searchsorted((self.grid[:-1] + self.grid[1:]) / 2, wanted)
        steps = np.diff(self.grid, prepend=-np.inf, append=np.inf)
        return np.minimum(steps[place], steps[place + 1]) * np.abs(self.scale)


# --- what a code is ---------------------------------------------------------------------------------------------------


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


# --- what a scale is --------------------------------------------------------------------------------------------------

ODD = {"zero": 0.0, "one": 1.0, "minus": -3.0, "denormal": 1e-44, "smallest": 1e-45, "huge": 3e38, "minus huge": -3e38}


def has_finite_scales(entry: ArrayScheme, value: float) -> None:
    for mixed in (False, True):
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


@every_entry
def test_scales_and_values_are_finite_whatever_the_tensor(entry):
    for value in ODD.values():
        has_finite_scales(entry, value)


BEYOND = "the smallest code lies further from zero than the largest, and times a scale that is rounded it is infinite"


@where(lambda entry: True, dict.fromkeys([*(n for n in SCHEMES if "mxint8" in n), "int4-g32-scale-e8m0"], BEYOND))
def test_scales_and_values_of_the_largest_float32_are_finite(entry):
    has_finite_scales(entry, 3.4028235e38)
    has_finite_scales(entry, -3.4028235e38)


@fault("a scale that is stored as bf16 or E8M0 is rounded up or down, and its codes then reach infinity")
def test_a_scale_of_few_bits_keeps_the_largest_float32_finite():
    infinite = []
    for name, stored in itertools.product(FORMATS, ("bf16", "e8m0", "fp32")):
        for words, value in itertools.product(("", "-asym"), (3.4028235e38, -3.4028235e38, 3e38, -3e38, 2.6e38)):
            shorthand = f"{name}-g32{words}-scale-{stored}"
            if words and not isinstance(FORMATS[name], Int):
                continue
            with np.errstate(over="ignore"):
                values = fewbits.quantize_array(np.array([[value, 0.0]], np.float32), shorthand).dequantize()
            if not np.all(np.isfinite(values)):
                infinite.append((shorthand, value))
    assert not infinite


def in_its_own(scheme: Scheme) -> bool:
    """Returns whether a group's scale depends on nothing but the group."""
    return not isinstance(scheme.scale, Scheme) and not isinstance(scheme.minimum, Scheme)


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
@settings(few, max_examples=6)
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


ONE = "the scale of a group of zeros is 1, and the scales of scales are made to reach it"


@where(lambda entry: isinstance(entry.scheme.scale, Scheme), dict.fromkeys(("nvfp4", "nvfp4a16", "nf4-dq"), ONE))
def test_a_group_of_zeros_leaves_the_scales_of_the_others_alone(entry):
    columns = wide(entry, 512)
    values = values_of("normal", (4, columns), 0) * np.float32(2.0**-10)
    with_zeros = np.concatenate([values, np.zeros((1, columns), np.float32)])
    ours, theirs = fewbits.quantize_array(values, entry), fewbits.quantize_array(with_zeros, entry)
    assert np.array_equal(np.asarray(theirs.dequantize())[:4], np.asarray(ours.dequantize()))
    assert np.all(np.asarray(theirs.dequantize())[4] == 0)


# --- how it is computed -----------------------------------------------------------------------------------------------


@every_entry
def test_the_size_of_a_tile_changes_nothing(monkeypatch, entry):
    shape = (9, wide(entry, 70))
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


def test_the_entries_hold_every_kind_of_format_and_granularity():
    kinds = {type(entry.scheme.format) for entry in ENTRIES.values()}
    assert {Int, Codebook} < kinds
    assert {type(fmt) for fmt in FORMATS.values() if isinstance(fmt, Format)} >= kinds
    assert {type(entry.scheme.granularity).__name__ for entry in ENTRIES.values()} == {
        "PerTensor", "PerChannel", "PerToken", "PerGroup", "PerBlock", "PerFlat",
    }  # fmt: skip
    assert FULL_RANGE in {entry.rule for entry in ENTRIES.values()}
