"""Parity: the same source on NumPy and on array-api-strict gives the same bits; no sum is involved, so no tolerance."""

import array_api_strict as strict
import numpy as np
import pytest

from fewbits._base.arrays import same_array, to_numpy
from fewbits.numerics.format import Int
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, quantize
from fewbits.numerics.scaling import affine_from_amax, choose_affine, choose_scale
from fewbits.numerics.scheme import Scheme

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
