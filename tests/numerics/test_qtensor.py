import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fewbits._base.errors import NumericsError
from fewbits.numerics import oracle
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import Granularity, PerChannel, PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, quantize, refuse_nonfinite
from fewbits.numerics.scaling import MIN_SCALE, choose_affine, choose_scale
from fewbits.numerics.scheme import Scheme, parse_scheme

I8, U8, I4 = Int(bits=8, signed=True), Int(bits=8, signed=False), Int(bits=4, signed=True)
EPSILON = 2.0**-24  # unit roundoff of float32
SMALLEST = float(np.float32(1e-45))  # the smallest denormal


def params(scale, zero=0, *, fmt=I8, granularity: Granularity | None = None) -> QParams:
    scale = np.asarray(scale, dtype=np.float32)
    zero = np.broadcast_to(np.asarray(zero, dtype=np.float32), scale.shape).copy()
    scheme = Scheme(format=fmt, granularity=granularity or PerTensor(), symmetric=not np.any(zero))
    return QParams(scheme=scheme, scale=scale, zero_point=zero)


def codes_of(values, scale, zero=0, *, fmt=I8) -> np.ndarray:
    return quantize(np.asarray(values, dtype=np.float32), params(scale, zero, fmt=fmt)).codes


# --- oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "scale", "zero"),
    [(I8, 0.5, 0), (U8, 0.0123, 117), (I4, 0.7, 0)],
    ids=["int8-ties", "uint8-zero-117", "int4"],
)
def test_every_third_float16_gets_the_oracles_code(float16_values, fmt, scale, zero):
    scale = float(np.float32(scale))
    float16_values = float16_values[::3]
    codes = codes_of(float16_values, scale, zero, fmt=fmt)
    # Beyond twice the format's reach all values saturate alike: the oracle need not be asked for each.
    reach = 2 * 2**fmt.bits * scale
    inside = np.abs(float16_values) <= reach
    assert set(codes[float16_values > reach].tolist()) <= {fmt.max_code}
    assert set(codes[float16_values < -reach].tolist()) <= {fmt.min_code}
    expected = [
        oracle.quantize_integer(v, scale, zero, low=fmt.min_code, high=fmt.max_code)
        for v in float16_values[inside].tolist()
    ]
    assert codes[inside].tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [I8, U8, I4, Int(bits=16, signed=False)], ids=lambda f: f.name)
@pytest.mark.parametrize("scale", [2.0**-24, 0.0039, 3.7])
def test_every_float16_gets_the_oracles_code_at_many_scales(float16_values, fmt, scale):
    scale, zero = float(np.float32(scale)), fmt.max_code // 3
    expected = [
        oracle.quantize_integer(v, scale, zero, low=fmt.min_code, high=fmt.max_code) for v in float16_values.tolist()
    ]
    assert codes_of(float16_values, scale, zero, fmt=fmt).tolist() == expected


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 2.0**-20, 1e-30, MIN_SCALE, SMALLEST, 1e30, 2.6e36])
@pytest.mark.parametrize(("fmt", "zero"), [(I8, 0), (I8, -128), (U8, 0), (U8, 128), (U8, 255)])
def test_ties_their_neighbours_denormals_and_extremes_get_the_oracles_code(hard_values, scale, fmt, zero):
    scale = float(np.float32(scale))
    values = hard_values(scale)
    expected = [oracle.quantize_integer(v, scale, zero, low=fmt.min_code, high=fmt.max_code) for v in values.tolist()]
    assert codes_of(values, scale, zero, fmt=fmt).tolist() == expected


@settings(max_examples=300)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(min_value=MIN_SCALE, max_value=3e38).map(lambda s: float(np.float32(s))),
    st.builds(Int, bits=st.sampled_from([2, 3, 4, 8, 16]), signed=st.booleans()),
    st.integers(0, 2**16),
)
def test_any_float32_gets_the_oracles_code(value, scale, fmt, offset):
    zero = fmt.min_code + offset % 2**fmt.bits
    expected = oracle.quantize_integer(value, scale, zero, low=fmt.min_code, high=fmt.max_code)
    assert codes_of([value], scale, zero, fmt=fmt).tolist() == [expected]


@pytest.mark.parametrize("scale", [0.1, MIN_SCALE, 1e-44, 1.1e36])
@pytest.mark.parametrize(("fmt", "zero"), [(I8, 0), (U8, 93), (I4, 0), (Int(bits=2, signed=False), 1)])
def test_every_code_dequantizes_as_the_oracle_says(scale, fmt, zero):
    codes = np.arange(fmt.min_code, fmt.max_code + 1).astype(fmt.code_dtype)
    values = QTensor(codes=codes, params=params(np.float32(scale), zero, fmt=fmt)).dequantize()
    assert values.dtype == np.float32
    assert values.tolist() == [oracle.dequantize_integer(c, float(np.float32(scale)), zero) for c in codes.tolist()]


# --- laws ---------------------------------------------------------------------------------------------------------

RANGES = st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted).filter(lambda r: r[1] - r[0] > 1e-6)
WIDTHS = st.builds(Int, bits=st.sampled_from([2, 4, 8, 16]), signed=st.booleans())


def affine(low: float, high: float, fmt: Int) -> QParams:
    scale, zero = choose_affine(np.array(low), np.array(high), fmt)
    return params(scale, zero, fmt=fmt)


@settings(max_examples=200)
@given(RANGES, WIDTHS, st.integers(0, 2**32 - 1))
def test_inside_the_range_the_error_is_half_a_step_and_zero_is_exact(ends, fmt, seed):
    # N12. The quotient q is rounded to float32 (q EPSILON steps), and so is the product (as much again); the range
    # itself may be short by half a step at one end, where values saturate, and by 2**bits EPSILON (the scale).
    low, high = ends
    values = np.random.default_rng(seed).uniform(min(low, 0), max(high, 0), 64).astype(np.float32)
    values[:3] = low, high, 0.0
    tensor = quantize(values, affine(low, high, fmt))
    wrong = np.abs(tensor.dequantize().astype(np.float64) - values)
    assert wrong.max() <= float(tensor.scale) * (0.5 + 3 * 2.0**fmt.bits * EPSILON)
    assert wrong[2] == 0.0


@given(RANGES, WIDTHS)
def test_every_grid_value_keeps_its_code(ends, fmt):
    # (n s rounded) / s differs from n by at most 2 n EPSILON < 1/2 for n < 2**22: quantizing again changes nothing.
    p = affine(*ends, fmt)
    codes = np.arange(fmt.min_code, fmt.max_code + 1).astype(fmt.code_dtype)
    grid = QTensor(codes=codes, params=p).dequantize()
    assert np.array_equal(quantize(grid, p).codes, codes)


@given(RANGES, WIDTHS, st.integers(0, 2**32 - 1))
def test_codes_are_monotone_in_the_values(ends, fmt, seed):
    values = np.sort(np.random.default_rng(seed).normal(0, max(map(abs, ends)), 200).astype(np.float32))
    codes = quantize(values, affine(*ends, fmt)).codes.astype(np.int64)
    assert np.all(np.diff(codes) >= 0)


@given(st.floats(1e-10, 1e10), st.integers(-30, 30), st.integers(0, 2**32 - 1))
def test_codes_do_not_change_when_values_and_scale_move_by_a_power_of_two(scale, shift, seed):
    values = (np.random.default_rng(seed).normal(0, 60 * scale, 50)).astype(np.float32)
    factor = np.float32(2.0**shift)
    assert np.array_equal(codes_of(values, scale), codes_of(values * factor, np.float32(scale) * factor))


@given(st.floats(1e-10, 1e10), st.integers(0, 2**32 - 1))
def test_a_symmetric_scheme_treats_both_signs_alike_inside_its_range(scale, seed):
    values = np.random.default_rng(seed).uniform(-127 * scale, 127 * scale, 50).astype(np.float32)
    assert np.array_equal(codes_of(-values, scale), -codes_of(values, scale))


@given(st.permutations(range(5)), st.integers(0, 2**32 - 1))
def test_permuting_channels_commutes_with_quantizing_them(order, seed):
    # N13
    values = np.random.default_rng(seed).standard_normal((5, 3, 2)).astype(np.float32)
    scale = choose_scale(np.abs(values).max(axis=(1, 2), keepdims=True), I8)
    one = quantize(values, params(scale, granularity=PerChannel(0)))
    other = quantize(values[order], params(scale[order], granularity=PerChannel(0)))
    assert np.array_equal(other.codes, one.codes[order])


@given(st.integers(1, 5), st.integers(1, 13), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_groups_quantize_as_tensors_of_their_own_and_no_column_is_lost(rows, columns, size, seed):
    # N14: the last group may be short.
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    granularity = PerGroup(1, size)
    amax = np.abs(granularity.to_groups(values)).max(axis=1)
    scale = choose_scale(amax, I4).reshape(granularity.scale_shape(values.shape))
    tensor = quantize(values, params(scale, fmt=I4, granularity=granularity))
    assert tensor.shape == values.shape
    for start in range(0, columns, size):
        part = values[:, start : start + size]
        for row in range(rows):
            expected = codes_of(part[row], scale[row, start // size], fmt=I4)
            assert np.array_equal(tensor.codes[row, start : start + size], expected)


# --- named cases of the fault list ----------------------------------------------------------------------------------


@given(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100).filter(lambda c: abs(c) > 1e-30), WIDTHS)
def test_a_constant_tensor_is_exact_to_float32(constant, fmt):
    # N7: the constant is an end of the range, so a code stands for it; what is left is two roundings of float32 and the
    # zero point's rounding, which moves nothing here because the other end is 0, a code's own value.
    tensor = quantize(np.full(4, constant, np.float32), affine(constant, constant, fmt))
    assert np.all(np.abs(tensor.dequantize() - constant) <= abs(constant) * 2 * EPSILON)


def test_a_dead_channel_stays_exactly_zero():
    # N6
    values = np.array([[0.0, -0.0], [1.0, -2.0]], dtype=np.float32)
    scale = choose_scale(np.abs(values).max(axis=1, keepdims=True), I8)
    tensor = quantize(values, params(scale, granularity=PerChannel(0)))
    assert tensor.dequantize()[0].tolist() == [0.0, 0.0]


def test_a_denormal_tensor_becomes_zero_and_never_nan():
    # N8
    values = np.array([1e-40, -1e-44, 1e-45], dtype=np.float32)
    tensor = quantize(values, params(choose_scale(np.abs(values).max(), I8)))
    assert tensor.dequantize().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [3e38, -3e38, 3.4028235e38, 1e30])
@pytest.mark.parametrize("scale", [1e-3, MIN_SCALE, 1e-45])
def test_a_quotient_beyond_float32_saturates_without_a_warning(value, scale):
    # N3, N9: the quotient overflows to infinity; our own warnings are errors here.
    assert codes_of([value], scale, 7).tolist() == [127 if value > 0 else -128]


def test_float64_beyond_float32_is_refused_without_a_warning():
    with pytest.raises(NumericsError) as caught:
        quantize(np.array([0.0, 1e300]), params(1.0))
    assert caught.value.slug == "nonfinite-values"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_count_and_first_index(bad):
    # N5
    values = np.zeros((2, 3, 4), dtype=np.float32)
    values[1, 0, 2] = values[1, 2, 3] = bad
    with pytest.raises(NumericsError, match=r"2 NaN or infinite values, the first at index \[1, 0, 2\]") as caught:
        quantize(values, params(1.0))
    assert caught.value.slug == "nonfinite-values"
    with pytest.raises(NumericsError, match=r"'conv\.weight' holds"):
        refuse_nonfinite(values, where="'conv.weight'")


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_not_positive_and_finite_is_refused(scale):
    with pytest.raises(NumericsError) as caught:
        quantize(np.ones(2, np.float32), params(scale))
    assert caught.value.slug == "scale-not-positive"


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        ("int8 per-channel(0) symmetric", (1, 3)),  # the other axis of a square: broadcasts, and would be wrong
        ("int8 per-channel(0) symmetric", (3,)),
        ("int8 per-channel(0) symmetric", ()),
        ("int8 per-tensor symmetric", (3, 1)),
        ("int8 per-group(1, 2) symmetric", (3, 3)),
        ("int8 per-group(1, 2) symmetric", (3, 1)),
    ],
)
def test_scales_that_do_not_fit_the_granularity_are_refused_even_where_they_broadcast(scheme, shape):
    p = QParams(scheme=parse_scheme(scheme), scale=np.ones(shape, np.float32), zero_point=np.zeros(shape, np.float32))
    with pytest.raises(NumericsError) as caught:
        quantize(np.ones((3, 3), np.float32), p)
    assert caught.value.slug == "scale-shape"
    with pytest.raises(NumericsError) as caught:
        QTensor(codes=np.ones((3, 3), np.int8), params=p)
    assert caught.value.slug == "scale-shape"


def test_scale_and_zero_point_of_different_shapes_are_refused():
    with pytest.raises(NumericsError) as caught:
        QParams(scheme=parse_scheme("int8 per-tensor symmetric"), scale=np.ones(1), zero_point=np.zeros(2))
    assert caught.value.slug == "qparams-shape"


# --- the value ------------------------------------------------------------------------------------------------------


def test_values_hold_read_only_arrays_and_compare_by_their_bits():
    one, two = (quantize(np.array([1.0, -2.0], np.float32), params(0.1)) for _ in range(2))
    assert one.same(two)
    assert not one.same(quantize(np.array([1.0, -2.0], np.float32), params(0.2)))
    assert not one.same(quantize(np.array([1.0, -2.1], np.float32), params(0.1)))
    for array in (one.codes, one.scale, one.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    ("scheme", "shape", "bits"),
    [
        ("int8 per-tensor symmetric", (4, 8), 8 + 32 / 32),
        ("uint8 per-tensor asymmetric", (4, 8), 8 + 40 / 32),
        ("int8 per-channel(0) symmetric", (4, 8), 8 + 4 * 32 / 32),
        ("uint4 per-group(1, 4) asymmetric", (4, 8), 4 + 8 * 36 / 32),
    ],
)
def test_bits_per_weight_counts_scales_and_zero_points(scheme, shape, bits):
    parsed = parse_scheme(scheme)
    scale = np.ones(parsed.granularity.scale_shape(shape), np.float32)
    p = QParams(scheme=parsed, scale=scale, zero_point=np.zeros_like(scale))
    assert quantize(np.ones(shape, np.float32), p).bits_per_weight == bits


@given(st.integers(0, 2**32 - 1))
@example(0)
def test_what_follows_the_values_does_not_change_when_memory_is_laid_out_otherwise(seed):
    values = np.random.default_rng(seed).standard_normal((6, 4)).astype(np.float32)
    scale = np.full((6, 1), 0.01, np.float32)
    p = params(scale, granularity=PerChannel(0))
    assert quantize(np.asfortranarray(values), p).same(quantize(values, p))
