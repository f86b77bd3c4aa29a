"""Parity: the same source on NumPy and on array-api-strict gives the same bits; no sum is involved, so no tolerance."""

import array_api_strict as strict
import numpy as np
import pytest

import fewbits
from fewbits._base.arrays import same_array, to_numpy
from fewbits.numerics.format import Format, Int
from fewbits.numerics.formats import FORMATS as CATALOG
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, quantize
from fewbits.numerics.scaling import affine_from_amax, choose_affine, choose_scale
from fewbits.numerics.scheme import Scheme
from fewbits.numerics.schemes import SCHEMES

FORMATS = [Int(bits=b, signed=s) for b in (2, 3, 4, 8, 16) for s in (True, False)]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(-1), PerGroup(1, 4), PerGroup(-2, 5)]


@pytest.fixture
def values() -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((3, 7, 6)).astype(np.float32)
    values[0] = 0
    values[1, 0, :4] = 3e38, -3e38, 1e-44, -0.0
    return values


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: g.name)
def test_scales_codes_and_values_are_the_same_bits(values, fmt, granularity):
    tensors = []
    for xp in (np, strict):
        x = xp.asarray(values)
        rows = granularity.to_groups(x)
        scale, zero = choose_affine(xp.min(rows, axis=1), xp.max(rows, axis=1), fmt)
        shape = granularity.scale_shape(values.shape)
        params = QParams(
            scheme=Scheme(format=fmt, granularity=granularity, symmetric=False),
            scale=xp.reshape(scale, shape),
            zero_point=xp.reshape(zero, shape),
        )
        tensor = quantize(x, params)
        tensors.append(tensor)
        assert type(tensor.codes) is type(x), "an array of another library came back"
        assert type(tensor.dequantize()) is type(x)
    ours, theirs = tensors
    assert ours.same(theirs)
    assert same_array(ours.dequantize(), theirs.dequantize())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.name)
def test_symmetric_scales_are_the_same_bits(fmt):
    amax = np.abs(np.random.default_rng(0).standard_normal(50).astype(np.float32)) * np.float32(1e-3)
    amax[:3] = 0, 1e-44, 3.4e38
    assert same_array(choose_scale(amax, fmt), choose_scale(strict.asarray(amax), fmt))
    for ours, theirs in zip(affine_from_amax(amax, fmt), affine_from_amax(strict.asarray(amax), fmt), strict=True):
        assert same_array(ours, theirs)


def test_a_single_number_stays_an_array_of_its_library():
    for xp in (np, strict):
        one = xp.asarray(3.0)
        for array in (choose_scale(one, FORMATS[0]), *choose_affine(-one, one, FORMATS[0])):
            assert isinstance(array, type(one))
            assert to_numpy(array).shape == ()


# --- every format and scheme --------------------------------------------------------------------------------------

SHORTHANDS = (
    "int8", "uint8-asym", "uint16-asym", "int5-channel", "uint3-token-asym", "int4-g7", "uint2-g16-asym", "int4-f50",
    "uint4-b3x5-asym", "int4-g32-scale-fp16", "int4-g16-scale-ue4m3", "fp8_e5m2-channel", "fp6_e3m2-g32",
    "fp4_e2m1-f24", "nf4-f64-scale-bf16", "binary", "ternary-g10", "fp16-channel",
)  # fmt: skip


def hard_rows(columns: int) -> np.ndarray:
    """Returns rows over many magnitudes, with ties, zeros, a constant, denormals, an outlier and float32's end."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((11, columns)) * np.exp2(rng.integers(-12, 8, (11, columns)))
    rows[0] = np.arange(columns) / 2 - 16
    rows[1], rows[2], rows[3] = 0, 1e-44, -2.5
    rows[4, 3] = 1e4
    rows[5] = np.abs(rows[5]) + 100
    return rows.astype(np.float32)


def columns_of(name: str) -> int:
    divides = SCHEMES.of_array(name).divides
    return 70 if divides == 1 else -(-70 // divides) * divides


def same_on_strict(values: np.ndarray, name: str, *, axis: int = -1, seed: int | None = None) -> None:
    ours = fewbits.quantize_array(values, name, axis=axis, seed=seed)
    theirs = fewbits.quantize_array(strict.asarray(values), name, axis=axis, seed=seed)
    assert type(theirs.codes) is type(strict.asarray(values)), "an array of another library came back"
    assert ours.same(theirs)
    assert same_array(ours.dequantize(), theirs.dequantize())


@pytest.mark.parametrize("name", [*SCHEMES, *SHORTHANDS])
def test_every_scheme_gives_the_same_codes_scales_and_values(name):
    values = hard_rows(columns_of(name))
    same_on_strict(values, name)
    same_on_strict(np.ascontiguousarray(values.T), name, axis=0)
    same_on_strict(values[:6].astype(np.float64), name)


@pytest.mark.parametrize("name", ["int4-g32", "uint8-asym", "nvfp4", "nf4-dq", "mxfp8", "ternary"])
def test_random_rounding_gives_the_same_codes(name):
    same_on_strict(hard_rows(70), name, seed=11)


def inputs_of(fmt: Format) -> np.ndarray:
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 1 << 32, 4000, dtype=np.uint32).view(np.float32)
    known = patterns if fmt.nan_code is not None else patterns[~np.isnan(patterns)]
    grid = fmt.grid[:: max(1, len(fmt.grid) // 500)] if fmt.stored_bits <= 16 else np.arange(9, dtype=np.float32)
    halves = grid[:-1] / 2 + grid[1:] / 2
    return np.concatenate([known, grid, halves, np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45], np.float32)])


@pytest.mark.parametrize("name", list(CATALOG))
def test_every_format_gives_the_same_codes_and_values(name):
    fmt = CATALOG[name]
    values = inputs_of(fmt)
    codes = np.asarray(fmt.encode(values))
    assert same_array(codes, fmt.encode(strict.asarray(values)))
    assert same_array(fmt.decode(codes), fmt.decode(strict.asarray(codes)))
    if fmt.stored_bits <= 16:
        assert same_array(fmt.encode(values, seed=3), fmt.encode(strict.asarray(values), seed=3))
        every = np.asarray(fmt.codes())
        assert same_array(fmt.decode(every), fmt.decode(strict.asarray(every)))
