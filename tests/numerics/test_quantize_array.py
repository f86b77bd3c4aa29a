"""The public function on arrays: what it takes, what it refuses in one line, and what its codes are."""

import numpy as np
import pytest

import fewbits
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, quantize
from fewbits.numerics.scheme import Scheme

NORMAL = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)


def refused(values, scheme="int4-g32", **options):
    with pytest.raises(fewbits.FewbitsError) as caught:
        fewbits.quantize_array(values, scheme, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(f"[{caught.value.slug}]")
    return caught.value


@pytest.mark.parametrize("scheme", ["int8", "int4-g32", "nvfp4", "mxfp4", "nf4", "fp16", "binary", "uint4-g32-asym"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_count_and_place(scheme, bad):
    values = NORMAL.copy()
    values[2, 7] = values[3, 9] = bad
    error = refused(values, scheme)
    assert error.slug == "nonfinite-values"
    assert "2 NaN or infinite values" in str(error) and "[2, 7]" in str(error)


def test_float64_beyond_float32_is_refused_and_not_clipped():
    assert refused(np.array([[1.0, 1e300]])).slug == "nonfinite-values"


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3), ()])
def test_empty_arrays_and_scalars_are_refused(shape):
    assert refused(np.zeros(shape, np.float32)).slug == "array-empty"


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.bool_, np.uint8])
def test_integers_are_refused(dtype):
    assert refused(np.ones((2, 32), dtype)).slug == "array-not-float"


@pytest.mark.parametrize(
    "values", [np.array([[1.0, None]], object), np.array([["a"]]), [[1.0]], None, np.ones(4, np.complex64)]
)
def test_what_holds_no_numbers_is_refused(values):
    assert refused(values).slug == "array-not-float"


def test_an_axis_that_is_not_there_is_refused():
    assert refused(NORMAL, axis=2).slug == "axis-out-of-range"
    assert refused(NORMAL[0], "int8-channel").slug == "axis-out-of-range"
    assert refused(NORMAL[0], "fp8-block").slug == "axis-out-of-range"


def test_a_group_that_does_not_divide_is_cut_short_and_the_length_kept():
    values = NORMAL[:, :40]
    q = fewbits.quantize_array(values, "int8-g32")
    assert q.dequantize().shape == (6, 40) and q.scale.shape == (6, 2)
    alone = fewbits.quantize_array(values[:, 32:], "int8-g32")
    assert np.array_equal(q.codes[:, 32:], alone.codes)


def test_a_scale_of_zero_is_refused():
    scheme = Scheme(format=fewbits.formats["int8"], granularity=PerTensor(), symmetric=True)
    for scale in (0.0, -1.0, np.nan, np.inf):
        params = QParams(
            scheme=scheme, scale=np.full((1, 1), scale, np.float32), zero_point=np.zeros((1, 1), np.float32)
        )
        with pytest.raises(fewbits.NumericsError, match="scale-not-positive"):
            quantize(NORMAL, params)


@pytest.mark.parametrize(
    "values", [(1.0,), (0.0, 1.0, 1.0), (0.0, np.nan), (0.0, np.inf), (0.0, -0.0), (1.0, 1.0 + 1e-12), ((0.0, 1.0),)]
)
def test_a_codebook_with_duplicates_nan_or_too_few_values_is_refused(values):
    from fewbits.numerics.codebook import Codebook

    with pytest.raises(fewbits.NumericsError, match="codebook") as caught:
        Codebook(name="mine", values=values)
    assert "\n" not in str(caught.value)


def test_a_learned_codebook_is_a_format_like_any_other():
    from fewbits.numerics.codebook import Codebook

    mine = Codebook(name="mine", values=(0.9, -0.3, 0.0, -1.0, 0.25))
    scheme = Scheme(format=mine, granularity=PerGroup(axis=1, size=64), symmetric=True)
    q = fewbits.quantize_array(NORMAL, scheme)
    assert mine.stored_bits == 3
    groups = NORMAL.reshape(6, 4, 64).astype(np.float64)
    scale = np.asarray(q.scale).astype(np.float64)[..., None]
    distance = np.abs((groups / scale)[..., None] - np.array(mine.values))
    assert np.array_equal(np.asarray(q.codes).reshape(6, 4, 64), distance.argmin(axis=-1))


def test_a_scheme_of_ones_own_keeps_its_axes():
    scheme = Scheme(format=fewbits.formats["int8"], granularity=PerChannel(1), symmetric=True)
    assert fewbits.quantize_array(NORMAL, scheme).scale.shape == (1, 256)


@pytest.mark.parametrize("shape", [(7,), (3, 5, 64), (2, 3, 4, 32)])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("scheme", ["int8", "int4-g16", "int8-token", "mxfp4", "nvfp4", "nf4-dq"])
def test_every_rank_is_taken_and_groups_lie_along_the_axis(shape, axis, scheme):
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    q = fewbits.quantize_array(values, scheme, axis=axis)
    assert q.dequantize().shape == shape
    if scheme != "nf4-dq":  # its blocks follow the memory
        turned = fewbits.quantize_array(np.ascontiguousarray(np.moveaxis(values, axis, -1)), scheme)
        assert np.array_equal(np.moveaxis(np.asarray(q.codes), axis, -1), turned.codes)


def test_codes_of_int8_are_those_of_the_definition():
    q = fewbits.quantize_array(NORMAL, "int8-channel")
    scale = (np.abs(NORMAL).max(axis=1, keepdims=True).astype(np.float64) / 127).astype(np.float32)
    assert np.array_equal(q.scale, scale)
    assert np.array_equal(q.codes, np.clip(np.round(NORMAL / scale), -128, 127))
    assert isinstance(q, QTensor)


def test_rounding_at_random_is_unbiased_and_repeats_with_its_seed():
    values = np.full((1, 4096), 0.3, np.float32)
    values[0, 0] = 7.0  # scale 1
    q = fewbits.quantize_array(values, "int4", seed=3)
    assert set(np.unique(q.codes[0, 1:])) == {0, 1}
    # Hoeffding: |mean - 0.3| > 0.036 has a probability below 2 exp(-2 * 4095 * 0.036**2) < 1e-4; the seed is fixed.
    assert abs(float(np.mean(q.dequantize()[0, 1:])) - 0.3) < 0.036
    assert np.array_equal(q.codes, fewbits.quantize_array(values, "int4", seed=3).codes)
    assert not np.array_equal(q.codes, fewbits.quantize_array(values, "int4", seed=4).codes)


def test_double_quantization_takes_the_bits_that_its_paper_says():
    values = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
    # QLoRA, section 3: 8/64 + 32/(64 * 256) = 0.127 bits a weight; ours has a minimum beside the scale.
    assert fewbits.quantize_array(values, "nf4-dq").bits_per_weight == 4 + 8 / 64 + 64 / (64 * 256)
    assert fewbits.quantize_array(values, "nf4").bits_per_weight == 4 + 32 / 64


def test_nothing_is_written_into_what_came():
    values = NORMAL.copy()
    values.flags.writeable = False
    for scheme in ("int8", "fp16", "nvfp4", "uint4-g32-asym", "nf4-dq", "ternary"):
        fewbits.quantize_array(values, scheme).dequantize()
    assert np.array_equal(values, NORMAL)


def test_a_scheme_of_the_catalog_is_applied_as_by_its_name():
    from fewbits.numerics.schemes import SCHEMES

    for name in ("q4_k", "mxfp4", "nvfp4", "binary"):
        by_name = fewbits.quantize_array(NORMAL, name)
        assert fewbits.quantize_array(NORMAL, by_name.scheme).same(by_name)
        if name == "q4_k":
            assert fewbits.quantize_array(NORMAL, SCHEMES[name].weight.scheme).same(by_name)
