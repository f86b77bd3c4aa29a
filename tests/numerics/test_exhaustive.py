"""Every format of the catalog, and formats drawn at random, against the exact scalar oracle: codes, values, ties, ends.

The slow form goes through all float16 and all bfloat16; the quick one through a seeded sample of them with every tie,
every value and every end, each with its float32 neighbours.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewbits._base.errors import NumericsError
from fewbits.numerics import oracle
from fewbits.numerics.codebook import Codebook
from fewbits.numerics.floating import Exponent, Float, Single, Specials
from fewbits.numerics.format import Fixed, Format, Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.granularity import PerTensor
from fewbits.numerics.qtensor import QParams, quantize
from fewbits.numerics.scheme import Scheme

PATTERNS = np.arange(1 << 16, dtype=np.uint32)
FLOAT16 = PATTERNS.astype(np.uint16).view(np.float16).astype(np.float32)
BFLOAT16 = (PATTERNS << 16).view(np.float32)
# What quantizers disagree on; NaN apart.
HARD = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-44, -1e-44, 1e-40, -1e-40, 2.0**-127, 1.5 * 2.0**-127, 2.0**-126, 1.0, -1.0, 465.0,
     1e6, -1e6, 65519.996, 65520.0, 1e30, -1e30, 3.4028235e38, -3.4028235e38, np.inf, -np.inf],
    dtype=np.float32,
)  # fmt: skip
NAN_PATTERNS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0x7FA00000], dtype=np.uint32).view(
    np.float32
)
NO_MORE_THAN_8 = [name for name, fmt in FORMATS.items() if fmt.stored_bits <= 8]
LISTED = [name for name, fmt in FORMATS.items() if fmt.stored_bits <= 16]
each_format = pytest.mark.parametrize("name", list(FORMATS))
each_listed = pytest.mark.parametrize("name", LISTED)


def codes_by_oracle(values: np.ndarray, fmt: Format) -> np.ndarray:
    return np.array([oracle.encode(value, fmt) for value in values.tolist()]).astype(fmt.code_dtype)


def assert_encodes_as_the_oracle(values: np.ndarray, fmt: Format) -> None:
    """Compares the code of every value that is not NaN; of NaN, see the test of the policy."""
    values = values[~np.isnan(values)]
    codes = np.asarray(fmt.encode(values))
    expected = codes_by_oracle(values, fmt)
    assert codes.dtype == expected.dtype
    bad = np.flatnonzero(codes != expected)
    assert bad.size == 0, (fmt.name, values[bad[:5]].tolist(), codes[bad[:5]].tolist(), expected[bad[:5]].tolist())


def with_neighbours(values: np.ndarray) -> np.ndarray:
    up, down = np.float32(np.inf), np.float32(-np.inf)
    with np.errstate(over="ignore"):
        return np.concatenate([values, np.nextafter(values, up), np.nextafter(values, down)])


def ties_of(fmt: Format, pairs: np.ndarray) -> np.ndarray:
    """Returns the middles of these pairs of neighbours (places of the lower one), where float32 holds them."""
    values, _ = oracle.listed(fmt)
    middles = [(values[place] + values[place + 1]) / 2 for place in pairs.tolist()]
    return np.array([float(m) for m in middles if oracle.to_float32(m) == m], dtype=np.float32)


def table_of(fmt: Format, pairs: np.ndarray) -> np.ndarray:
    """Returns ties, values and ends with their float32 neighbours, what lies a step beyond the ends, and HARD."""
    values, _ = oracle.listed(fmt)
    grid = np.array([float(values[p]) for p in (*pairs.tolist(), -2, -1)], dtype=np.float32)
    ends = np.array([float(2 * values[e] - values[n]) for e, n in ((0, 1), (-1, -2))], dtype=np.float64)
    with np.errstate(over="ignore"):
        beyond = (ends[:, None] * np.array([1.0, 1.5])).astype(np.float32).ravel()
    return np.concatenate([with_neighbours(ties_of(fmt, pairs)), with_neighbours(grid), with_neighbours(beyond), HARD])


def all_pairs(fmt: Format) -> np.ndarray:
    return np.arange(len(oracle.listed(fmt)[0]) - 1)


# --- every input --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@each_listed
@pytest.mark.parametrize("inputs", [FLOAT16, BFLOAT16], ids=["float16", "bfloat16"])
def test_every_input_of_16_bits_gets_the_oracles_code(name, inputs):
    assert_encodes_as_the_oracle(inputs, FORMATS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32", "int32"])
def test_inputs_of_16_bits_get_the_oracles_code_in_32(name):
    for inputs in (FLOAT16, BFLOAT16):
        assert_encodes_as_the_oracle(inputs[::13], FORMATS[name])


@pytest.mark.slow
@each_listed
def test_every_tie_every_value_and_every_end_gets_the_oracles_code(name):
    fmt = FORMATS[name]
    assert_encodes_as_the_oracle(table_of(fmt, all_pairs(fmt)), fmt)


@pytest.mark.parametrize("name", NO_MORE_THAN_8)
def test_a_sample_and_every_tie_value_and_end_gets_the_oracles_code(name):
    fmt = FORMATS[name]
    rng = np.random.default_rng(0)
    sample = np.concatenate([rng.choice(FLOAT16, 400), rng.choice(BFLOAT16, 400)])
    assert_encodes_as_the_oracle(np.concatenate([sample, table_of(fmt, all_pairs(fmt))]), fmt)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in NO_MORE_THAN_8])
def test_a_sample_with_some_ties_and_both_ends_gets_the_oracles_code(name):
    fmt = FORMATS[name]
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.choice(FLOAT16, 200), rng.choice(BFLOAT16, 200), with_neighbours(HARD)])
    if name in LISTED:
        last = len(oracle.listed(fmt)[0]) - 2
        pairs = np.concatenate([rng.integers(0, last, 200), [0, 1, last // 2 - 1, last // 2, last // 2 + 1, last]])
        values = np.concatenate([values, table_of(fmt, pairs)])
    assert_encodes_as_the_oracle(values, fmt)


@each_listed
def test_the_middles_of_neighbours_are_float32_so_that_ties_are_tested(name):
    # A codebook's values may have all of float32's bits, and middles that have one more: of NF4's 15, six are float32.
    fmt = FORMATS[name]
    pairs = all_pairs(fmt)
    if fmt.stored_bits > 8:
        pairs = pairs[:: len(pairs) // 500]
    assert len(ties_of(fmt, pairs)) == (6 if name == "nf4" else len(pairs))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=20))
@each_format
def test_any_float32_gets_the_oracles_code(name, patterns):
    fmt = FORMATS[name]
    values = np.array(patterns, dtype=np.uint32).view(np.float32)
    assert_encodes_as_the_oracle(values, fmt)


# --- every code ---------------------------------------------------------------------------------------------------


def assert_decodes_as_the_oracle(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """Compares value, kind and sign of zero of codes; returns what they decode to."""
    values = np.asarray(fmt.decode(codes))
    assert values.dtype == np.float32
    for code, value in zip(codes.tolist(), values.tolist(), strict=True):
        expected = oracle.value_of(code, fmt)
        if isinstance(expected, float):
            assert np.array_equal(value, expected, equal_nan=True), (fmt.name, code)
        else:
            assert Fraction(value) == oracle.to_float32(expected), (fmt.name, code)
            if expected == 0:
                assert np.signbit(value) == oracle.is_negative(code, fmt), (fmt.name, code)
    return values


EVERY_CODE = [pytest.param(name, 1, id=name) for name in NO_MORE_THAN_8]
EVERY_CODE += [pytest.param(name, 19, id=f"{name}-sample") for name in LISTED if name not in NO_MORE_THAN_8]
EVERY_CODE += [pytest.param(n, 1, id=n, marks=pytest.mark.slow) for n in LISTED if n not in NO_MORE_THAN_8]


@pytest.mark.parametrize(("name", "step"), EVERY_CODE)
def test_every_code_decodes_to_the_oracles_value_and_is_the_code_of_it(name, step):
    fmt = FORMATS[name]
    codes = np.asarray(fmt.codes())
    assert codes.tolist() == list(oracle.codes_of(fmt))
    ends = [c for c in (fmt.nan_code, codes[-1], 0x7C00, 0xFC00, 0x7F80, 0xFF80) if c in codes]
    codes = codes if step == 1 else np.concatenate([codes[::step], np.array(ends, codes.dtype)])
    values = assert_decodes_as_the_oracle(codes, fmt)
    finite = np.isfinite(values)
    assert np.array_equal(fmt.encode(values[finite]), codes[finite])
    # By policy: an infinity becomes the largest value, and every NaN the one without sign and payload.
    top, bottom = codes_by_oracle(np.array([fmt.max_value, fmt.min_value]), fmt)
    again = fmt.encode(values)
    assert set(again[values == np.inf].tolist()) <= {top}
    assert set(again[values == -np.inf].tolist()) <= {bottom}
    assert set(again[np.isnan(values)].tolist()) <= {oracle.nan_code(fmt)}
    assert np.count_nonzero(np.isinf(values)) == 2 * (getattr(fmt, "specials", None) is Specials.IEEE)


@pytest.mark.parametrize("name", ["int32", "fp32"])
def test_codes_of_32_bits_decode_to_the_oracles_values(name):
    fmt = FORMATS[name]
    rng = np.random.default_rng(0)
    ends = [s * (1 << b) + d for b in range(31) for s in (1, -1) for d in (-1, 0, 1)]
    codes = np.array([*ends, -(1 << 31), (1 << 31) - 1, *rng.integers(-(1 << 31), 1 << 31, 2000)]).astype(np.int32)
    values = assert_decodes_as_the_oracle(codes, fmt)
    if name == "fp32":
        finite = np.isfinite(values)
        assert np.array_equal(fmt.encode(values[finite]), codes[finite])


@each_format
def test_what_a_format_says_of_itself_is_what_its_values_are(name):
    fmt = FORMATS[name]
    assert fmt.nan_code == oracle.nan_code(fmt)
    if name not in LISTED:
        return
    values, codes = oracle.listed(fmt)
    assert (Fraction(fmt.min_value), Fraction(fmt.max_value)) == (values[0], values[-1])
    assert Fraction(fmt.reach) == oracle.reach(fmt)
    assert [Fraction(v) for v in fmt.grid.tolist()] == list(values)
    zero = fmt.zero_code
    assert (zero is None) == (0 not in values)
    assert zero is None or zero == codes[values.index(Fraction(0))]


@each_format
def test_nan_gets_the_code_of_nan_or_is_refused(name):
    fmt = FORMATS[name]
    values = np.concatenate([NAN_PATTERNS, FLOAT16[np.isnan(FLOAT16)], BFLOAT16[np.isnan(BFLOAT16)]])
    code = oracle.nan_code(fmt)
    if code is not None:
        assert set(np.asarray(fmt.encode(values)).tolist()) == {code}
        mixed = np.asarray(fmt.encode(np.array([1.0, np.nan, -np.inf], np.float32)))
        assert mixed.tolist() == [oracle.encode(1.0, fmt), code, oracle.encode(-np.inf, fmt)]
        return
    for nan in values[:: len(values) // 20]:
        with pytest.raises(NumericsError) as caught:
            fmt.encode(np.array([1.0, nan], np.float32))
        assert caught.value.slug == "nan-has-no-code"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@each_format
def test_inputs_of_other_widths_get_the_codes_of_their_float32(name, dtype):
    import ml_dtypes

    fmt = FORMATS[name]
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    with np.errstate(over="ignore"):
        values = np.random.default_rng(0).choice(FLOAT16[np.isfinite(FLOAT16)], 2000).astype(kind)
    assert np.array_equal(fmt.encode(values), fmt.encode(values.astype(np.float32)))


# --- under a scale ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 2.0**-10, 7.7e-20, 1e30])
@pytest.mark.parametrize("name", NO_MORE_THAN_8)
def test_codes_under_a_scale_are_those_of_the_float32_quotient(name, scale):
    # Multiples of the scale by ties and values, where a quotient by the reciprocal would fall on the other side.
    fmt, scale32 = FORMATS[name], np.float32(scale)
    table = table_of(fmt, all_pairs(fmt))
    with np.errstate(over="ignore"):
        values = np.random.default_rng(0).choice(table[np.isfinite(table)], 300) * scale32
    values = values[np.isfinite(values)]
    scheme = Scheme(format=fmt, granularity=PerTensor(), symmetric=True)
    params = QParams(scheme=scheme, scale=np.full(1, scale32), zero_point=np.zeros(1, np.float32))
    tensor = quantize(values, params)
    exact = Fraction(float(scale32))
    codes = [oracle.quantize(value, exact, fmt) for value in values.tolist()]
    assert np.asarray(tensor.codes).tolist() == codes
    largest = Fraction(float(np.finfo(np.float32).max))
    kept = np.array([abs(oracle.value_of(code, fmt) * exact) <= largest for code in codes])
    with np.errstate(over="ignore"):
        back = np.asarray(tensor.dequantize())
    expected = [oracle.dequantize(code, exact, fmt) for code, held in zip(codes, kept.tolist(), strict=True) if held]
    assert back[kept].tolist() == expected


def test_the_oracle_knows_every_kind_of_format_that_there_is():
    kinds = {type(fmt) for fmt in FORMATS.values()}
    assert kinds <= {Int, Fixed, Float, Exponent, Single, Codebook}


# --- formats that nobody has listed -------------------------------------------------------------------------------


@st.composite
def drawn_floats(draw) -> Float:
    # The oracle lists all values, which takes as long as there are many: 12 bits with the sign, up to e8m3, e4m7.
    exponent_bits = draw(st.integers(2, 8))
    mantissa_bits = draw(st.integers(1, min(7, 11 - exponent_bits)))
    # Exponents of 8 bits fill float32 with infinity and NaN at the top.
    specials = draw(st.sampled_from(list(Specials))) if exponent_bits < 8 else Specials.IEEE
    # Inside float32: the largest exponent at most 127, and normal numbers normal; see OUTSIDE.
    largest = (1 << exponent_bits) - 1 - (specials is Specials.IEEE)
    bias = draw(st.integers(max(largest - 127, -103 - mantissa_bits), 127))
    return Float(
        name="drawn",
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        bias=bias,
        specials=specials,
        signed=draw(st.booleans()),
    )


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def drawn_codebooks(draw) -> Codebook:
    # Halves make exact ties; numbers of 24 bits make middles that float32 does not hold, and numbers of many sizes
    # middles that float64 does not hold.
    halves = st.integers(-40, 40).map(lambda n: n / 2)
    many_bits = st.tuples(st.integers(-(1 << 24) + 1, (1 << 24) - 1), st.sampled_from([20, 22, 24]))
    numbers = st.one_of(halves, many_bits.map(lambda pair: pair[0] / (1 << pair[1])))
    powers = st.sampled_from([0, 0, -100, 100, -140, 122])
    power = st.just(draw(powers)) if draw(st.booleans()) else powers
    # Rounded to float32's denormals where the power leads there.
    held = st.tuples(numbers, power).map(lambda pair: float(np.float32(pair[0] * 2.0 ** pair[1])) + 0.0)
    values = draw(st.lists(held, min_size=2, max_size=40, unique=True))
    return Codebook(name="drawn", values=tuple(values), ties=draw(st.sampled_from(["even", "up", "zero"])))


@settings(deadline=None, max_examples=60)
@given(drawn_floats(), st.integers(0, 2**32 - 1))
@example(Float(name="drawn", exponent_bits=8, mantissa_bits=7, bias=127, specials=Specials.IEEE), 0)
@example(Float(name="drawn", exponent_bits=2, mantissa_bits=1, bias=-60, specials=Specials.NONE, signed=False), 0)
@example(Float(name="drawn", exponent_bits=2, mantissa_bits=2, bias=127, specials=Specials.NONE), 0)
@example(Float(name="drawn", exponent_bits=2, mantissa_bits=2, bias=-105, specials=Specials.NONE), 0)
@example(Float(name="drawn", exponent_bits=4, mantissa_bits=4, bias=7, specials=Specials.NAN), 0)
def test_a_float_format_of_any_shape_agrees_with_the_oracle(fmt, seed):
    rng = np.random.default_rng(seed)
    pairs = rng.choice(all_pairs(fmt), min(60, len(all_pairs(fmt))), replace=False)
    any_float = rng.integers(0, 1 << 32, 50, dtype=np.uint32).view(np.float32)
    assert_encodes_as_the_oracle(np.concatenate([table_of(fmt, pairs), any_float]), fmt)
    codes = np.asarray(fmt.codes())
    assert len(codes) == len(oracle.codes_of(fmt))
    assert_decodes_as_the_oracle(rng.choice(codes, 100), fmt)


@settings(deadline=None, max_examples=100)
@given(drawn_codebooks(), st.lists(FINITE, max_size=20))
@example(Codebook(name="drawn", values=(3.4028235e38, -3.4028235e38)), [0.0, 1e-45, -1e-45])
@example(Codebook(name="drawn", values=(0.0, 1e-45), ties="up"), [])
@example(Codebook(name="drawn", values=(1e-45, 0.0, 3e38), ties="even"), [])
def test_a_codebook_in_any_order_agrees_with_the_oracle(fmt, others):
    assert_encodes_as_the_oracle(np.concatenate([table_of(fmt, all_pairs(fmt)), np.float32(others)]), fmt)
    assert_decodes_as_the_oracle(np.asarray(fmt.codes()), fmt)


# What the constructor refuses, each a step beyond what it takes (above).
OUTSIDE = {
    "normal numbers that are denormal in float32": (2, 2, 128, Specials.NONE),
    "denormals that are rounded by a power of two beyond float32": (2, 2, -106, Specials.NONE),
    "denormals near float32's end": (2, 2, -124, Specials.NONE),
    "numbers beyond float32's end": (7, 1, -1, Specials.NONE),
    "codes of 17 bits": (6, 10, 31, Specials.IEEE),
}


@pytest.mark.parametrize(("exponent_bits", "mantissa_bits", "bias", "specials"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_float_format_that_does_not_lie_inside_float32_is_refused(exponent_bits, mantissa_bits, bias, specials):
    with pytest.raises(NumericsError, match=f"got e{exponent_bits}m{mantissa_bits}, bias {bias}") as caught:
        Float(name="odd", exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, bias=bias, specials=specials)
    assert caught.value.slug == "format-bits"
    assert "\n" not in str(caught.value)


def test_nan_without_infinity_in_9_bits_is_decoded_as_the_oracle_says():
    # More than 8 bits are decoded without a table.
    fmt = Float(name="e4m4", exponent_bits=4, mantissa_bits=4, bias=7, specials=Specials.NAN)
    assert_encodes_as_the_oracle(table_of(fmt, all_pairs(fmt)), fmt)
    values = assert_decodes_as_the_oracle(np.asarray(fmt.codes()), fmt)
    assert np.flatnonzero(np.isnan(values)).tolist() == [0xFF, 0x1FF]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_beside_the_middle_of_neighbours_far_apart_gets_the_nearer_one(sign):
    # The middle is -1 - 2**-53, which float64 rounds to -1: that lies nearer to the small value.
    fmt = Codebook(name="far", values=tuple(sorted((-2.0 * sign, -(2.0**-52) * sign))))
    assert fmt.values[oracle.encode(-1.0 * sign, fmt)] == -(2.0**-52) * sign
    assert_encodes_as_the_oracle(with_neighbours(np.array([-1.0, 1.0], np.float32)), fmt)


def test_a_codebook_with_a_zero_decodes_to_the_same_bits_whichever_was_asked_before():
    # 0 and -0 are equal, so that the table of one is found for the other.
    minus, plus = (Codebook(name="zeros", values=(zero, 1.0)) for zero in (-0.0, 0.0))
    assert minus == plus
    signs = [bool(np.signbit(fmt.decode(np.zeros(1, np.uint8)))[0]) for fmt in (minus, plus)]
    assert signs == [False, False]
