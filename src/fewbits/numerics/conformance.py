"""What every format and scheme must keep, ours and third parties': ``check_format(fmt)``, ``check_scheme(scheme)``.

Each check raises AssertionError with what was broken, by which entry, on which input. The tests run all of them on all
that the catalogs hold; a package with formats of its own runs them in its own tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from fewbits._base.errors import FewbitsError, NumericsError
from fewbits.numerics.codebook import Codebook
from fewbits.numerics.format import MAX_LISTED_BITS, Format
from fewbits.numerics.named import NamedScheme, Solver
from fewbits.numerics.qtensor import as_array
from fewbits.numerics.quantizing import quantize_array
from fewbits.numerics.scheme import parse_scheme

_NAME = re.compile(r"[a-z][a-z0-9_]*")
# Names of schemes may join words by hyphens, as in w4a16-g128.
_SCHEME_NAME = re.compile(r"[a-z][a-z0-9_]*(-[a-z0-9_]+)*")
# Up to so many values, every neighbourhood of every tie is asked; beyond, a sample of them.
_ALL_TIES = 1 << 10
_FAR = np.array([-np.inf, -1e30, 1e30, np.inf], dtype=np.float32)


def check_format(fmt: Format) -> None:
    """Runs every check on a format; raises AssertionError where one fails."""
    for check in FORMAT_CHECKS:
        check(fmt)


def check_scheme(scheme: NamedScheme) -> None:
    """Runs every check on a named scheme, its weights and its activations; raises AssertionError where one fails."""
    for check in SCHEME_CHECKS:
        check(scheme)


def _is(truth: Any, fmt: Format | NamedScheme, what: str) -> None:
    if not truth:
        raise AssertionError(f"{fmt.name}: {what}")


def _codes(fmt: Format) -> np.ndarray:
    """Returns every code; of formats of more than 16 bits those of float32 values on which quantizers disagree."""
    if fmt.stored_bits <= MAX_LISTED_BITS:
        return fmt.codes()
    powers = np.exp2(np.arange(-40, 31)).astype(np.float32)
    return np.asarray(fmt.encode(np.concatenate([powers, -powers, [0, 1e30, -1e30]]).astype(np.float32)))


def a_format_says_what_it_is(fmt: Format) -> None:
    _is(_NAME.fullmatch(fmt.name), fmt, "a name has lower-case letters, digits and underscores")
    _is(fmt.source, fmt, "the source is not named")
    _is(fmt.min_value < fmt.max_value, fmt, "the ends are in the wrong order")
    _is(0 < fmt.reach <= max(abs(fmt.min_value), abs(fmt.max_value)), fmt, "reach lies outside of the values")
    _is(8 * np.dtype(fmt.code_dtype).itemsize >= fmt.stored_bits, fmt, "codes do not fit their dtype")
    if fmt.stored_bits <= MAX_LISTED_BITS:
        count = len(fmt.codes())
        _is(len(np.unique(fmt.codes())) == count, fmt, "a code is listed twice")
        _is(2 ** (fmt.stored_bits - 1) <= count <= 2**fmt.stored_bits, fmt, f"{count} codes do not fill their bits")


def every_code_survives(fmt: Format) -> None:
    codes = _codes(fmt)
    values = np.asarray(fmt.decode(codes))
    _is(values.dtype == np.float32, fmt, "decode does not give float32")
    finite = np.isfinite(values)
    again = np.asarray(fmt.encode(values[finite]))
    _is(again.dtype == np.dtype(fmt.code_dtype), fmt, f"encode gives {again.dtype}")
    _is(np.array_equal(again, codes[finite]), fmt, "a code does not re-encode to itself")
    top, bottom = fmt.encode(np.array([fmt.max_value, fmt.min_value], np.float32))
    for code in codes[np.isinf(values)]:
        value = np.asarray(fmt.decode(np.array([code], codes.dtype)))
        _is(fmt.encode(value)[0] == (top if value[0] > 0 else bottom), fmt, "infinity does not saturate")


def the_ends_are_values_and_all_beyond_saturates(fmt: Format) -> None:
    ends = np.array([fmt.min_value, fmt.min_value, fmt.max_value, fmt.max_value], np.float32)
    if max(abs(fmt.min_value), fmt.max_value) < 1e30:
        _is(np.array_equal(fmt.encode(_FAR), fmt.encode(ends)), fmt, "what lies beyond the ends does not saturate")
    wide = fmt.encode(np.array([-np.inf, np.inf]))  # float64
    _is(np.array_equal(wide, fmt.encode(ends[[0, 2]])), fmt, "infinity does not saturate")
    if fmt.stored_bits <= 24:
        _is(np.array_equal(fmt.decode(fmt.encode(ends)), ends), fmt, "an end is not a value")


def _around_ties(fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Returns the grid in float64, and float32 values on it, between its values, and one step around both."""
    grid = fmt.grid.astype(np.float64)
    pick = np.arange(len(grid) - 1)
    if len(grid) > _ALL_TIES:
        pick = np.unique(np.random.default_rng(0).choice(pick, _ALL_TIES))
    with np.errstate(over="ignore"):
        centre = np.concatenate([grid[pick], grid[pick] / 2 + grid[pick + 1] / 2, grid[-1:]]).astype(np.float32)
        up, down = np.nextafter(centre, np.float32(np.inf)), np.nextafter(centre, np.float32(-np.inf))
    values = np.concatenate([centre, up, down])
    return grid, np.sort(values[np.isfinite(values)])


def encode_takes_the_nearest_and_ties_as_declared(fmt: Format) -> None:
    if fmt.stored_bits > MAX_LISTED_BITS:
        return
    grid, values = _around_ties(fmt)
    place = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    low, high = grid[place], grid[place + 1]
    exact = values.astype(np.float64)
    back = np.asarray(fmt.decode(fmt.encode(values))).astype(np.float64)
    _is(np.all(np.diff(back) >= 0), fmt, "encode is not monotone")
    # The middle of two neighbours is exact in float64: their sizes lie within 2**28 of each other, or one is zero.
    middle = low / 2 + high / 2
    expected, tie = np.where(exact < middle, low, high), exact == middle
    _is(np.array_equal(back[~tie], np.clip(expected, grid[0], grid[-1])[~tie]), fmt, "encode does not take the nearest")
    if fmt.ties == "up":
        _is(np.array_equal(back[tie], high[tie]), fmt, "a tie does not go up")
    elif fmt.ties == "zero":
        nearer = np.where(np.abs(high[tie]) < np.abs(low[tie]), high[tie], low[tie])
        _is(np.array_equal(back[tie], nearer), fmt, "a tie does not go to the smaller magnitude")
    elif fmt.ties == "even":
        even = np.where(_is_even(fmt, low[tie]), low[tie], high[tie])
        _is(np.array_equal(back[tie], even), fmt, "a tie does not go to the even code")


def _is_even(fmt: Format, values: np.ndarray) -> np.ndarray:
    """Returns whether each value is the even one of its neighbours: by its place in a list, else by its code."""
    in_list = isinstance(fmt, Codebook)
    codes = np.searchsorted(fmt.grid, values) if in_list else np.asarray(fmt.encode(values.astype(np.float32)))
    return np.asarray(codes.astype(np.int64) % 2 == 0)


def zero_and_nan_follow_the_policy(fmt: Format) -> None:
    zero = np.asarray(fmt.decode(fmt.encode(np.zeros(1, np.float32))))[0]
    _is((zero == 0) == (fmt.zero_code is not None), fmt, "zero_code does not say whether zero is a value")
    sample = np.array([1.0, np.nan, -1.0], np.float32)
    if fmt.nan_code is None:
        try:
            fmt.encode(sample)
        except NumericsError:
            return
        raise AssertionError(f"{fmt.name}: NaN is neither refused nor has it a code")
    codes = fmt.encode(sample)
    _is(int(codes[1]) == fmt.nan_code, fmt, "NaN does not become nan_code")
    _is(np.isnan(fmt.decode(codes)[1]) and np.isfinite(fmt.decode(codes)[::2]).all(), fmt, "NaN spreads, or is lost")


def inputs_are_taken_and_refused(fmt: Format) -> None:
    values = np.array([[0.25, -1.0], [3.0, 0.0]], np.float32)
    values.flags.writeable = False
    codes = fmt.encode(values)
    for dtype in (np.float16, np.float64):
        _is(np.array_equal(fmt.encode(values.astype(dtype)), codes), fmt, f"{np.dtype(dtype)} gives other codes")
    _is(fmt.encode(values.T).shape == (2, 2) and np.array_equal(fmt.encode(values.T), codes.T), fmt, "a view differs")
    _is(fmt.encode(np.zeros((0, 3), np.float32)).shape == (0, 3), fmt, "an empty array changes its shape")
    for wrong in (np.arange(3), np.array(["a"], dtype=object), np.array([True])):
        try:
            fmt.encode(wrong)
        except FewbitsError:
            continue
        except TypeError:
            _is(wrong.dtype == object, fmt, f"{wrong.dtype} is refused without a message")
            continue
        raise AssertionError(f"{fmt.name}: {wrong.dtype} is taken as numbers")


def rounding_at_random_takes_a_neighbour(fmt: Format) -> None:
    if fmt.stored_bits > MAX_LISTED_BITS:
        return
    grid, values = _around_ties(fmt)
    place = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    inside = np.clip(values.astype(np.float64), grid[0], grid[-1])
    first, again = fmt.encode(values, seed=7), fmt.encode(values, seed=7)
    _is(np.array_equal(first, again), fmt, "the same seed gives other codes")
    back = np.asarray(fmt.decode(first)).astype(np.float64)
    _is(np.all((back == grid[place]) | (back == grid[place + 1])), fmt, "rounding at random leaves the neighbours")
    on_grid = np.isin(inside, grid)
    _is(np.array_equal(back[on_grid], inside[on_grid]), fmt, "rounding at random moves a value of the set")


FORMAT_CHECKS: tuple[Callable[[Format], None], ...] = (
    a_format_says_what_it_is,
    every_code_survives,
    the_ends_are_values_and_all_beyond_saturates,
    encode_takes_the_nearest_and_ties_as_declared,
    zero_and_nan_follow_the_policy,
    inputs_are_taken_and_refused,
    rounding_at_random_takes_a_neighbour,
)


def hard_arrays(columns: int = 256) -> dict[str, np.ndarray]:
    """Returns float32 matrices on which quantizers fail, by name; 8 rows."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((8, columns))
    outlier = normal.copy()
    outlier[3, 5] = 1e4
    arrays = {
        "normal": normal,
        "outlier": outlier,
        "positive": np.abs(normal) + 3,
        "all zero": np.zeros((8, columns)),
        "constant": np.full((8, columns), -0.37),
        "denormal": np.full((8, columns), 1e-44),
        "tiny": normal * 1e-30,
        "huge": np.clip(normal, -1, 1) * 3e38,
        "one value": np.eye(8, columns),
        "many scales": normal * np.exp2(rng.integers(-30, 30, (8, columns))),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def a_scheme_reads_back(scheme: NamedScheme) -> None:
    _is(_SCHEME_NAME.fullmatch(scheme.name), scheme, "a name has lower-case words joined by hyphens")
    for part in filter(None, (scheme.weight, scheme.activation)):
        _is(parse_scheme(part.scheme.name) == part.scheme, scheme, f"{part.scheme.name!r} does not read back")
    _is(scheme.dynamic is False or scheme.activation is not None, scheme, "dynamic, but activations stay as they are")


def hard_arrays_stay_finite(scheme: NamedScheme) -> None:
    for kind, values in hard_arrays().items():
        q = quantize_array(values, scheme.weight)
        back = np.asarray(q.dequantize())
        _is(back.shape == values.shape and back.dtype == np.float32, scheme, f"{kind}: {back.dtype} {back.shape}")
        _is(np.all(np.isfinite(back)), scheme, f"{kind}: a value is not finite any more")
        scale = np.asarray(as_array(q.scale))
        _is(np.all(np.isfinite(scale)), scheme, f"{kind}: a scale is not finite")
        if not isinstance(scheme.weight.rule, Solver):
            stored_again = not isinstance(q.scale, np.ndarray)
            _is(np.all(scale >= 0 if stored_again else scale > 0), scheme, f"{kind}: a scale is not positive")
        _is(np.array_equal(q.codes, quantize_array(values, scheme.weight).codes), scheme, f"{kind}: not repeatable")
        _is(q.bits_per_weight >= scheme.weight_bits, scheme, "fewer bits per weight than bits per code")


def zero_stays_zero(scheme: NamedScheme) -> None:
    fmt, how = scheme.weight.scheme.format, scheme.weight.scheme
    if fmt.zero_code is None or how.minimum is not None:
        return
    values = hard_arrays()["normal"]
    values[::2, ::3] = 0
    back = np.asarray(quantize_array(values, scheme.weight).dequantize())
    _is(np.all(back[::2, ::3] == 0), scheme, "zero is not exact")


def bad_arrays_are_refused(scheme: NamedScheme) -> None:
    values = hard_arrays()["normal"]
    for bad in (np.nan, np.inf, -np.inf):
        broken = values.copy()
        broken[2, 7] = bad
        _refuses(scheme, broken, "nonfinite-values")
    _refuses(scheme, values.astype(np.int32), "array-not-float")
    _refuses(scheme, values[:0], "array-empty")


def _refuses(scheme: NamedScheme, values: np.ndarray, slug: str) -> None:
    try:
        quantize_array(values, scheme.weight)
    except NumericsError as error:
        _is(error.slug == slug and "\n" not in str(error), scheme, f"expected one line [{slug}], got: {error}")
        return
    raise AssertionError(f"{scheme.name}: {values.dtype} {values.shape} is not refused as {slug}")


SCHEME_CHECKS: tuple[Callable[[NamedScheme], None], ...] = (
    a_scheme_reads_back,
    hard_arrays_stay_finite,
    zero_stays_zero,
    bad_arrays_are_refused,
)
