"""Every entry of the catalog of rounders, ours and third parties', is judged here by being in it."""

import numpy as np
import pytest

from fewbits._base.arrays import same_array
from fewbits._base.errors import NumericsError
from fewbits.algorithms.rounders import ROUNDERS
from fewbits.numerics.granularity import PerChannel, PerGroup, PerTensor
from fewbits.numerics.qtensor import QParams, QTensor
from fewbits.numerics.scaling import choose_affine, choose_scale
from fewbits.numerics.scheme import Scheme, parse_scheme

SCHEMES = [
    "int8 per-channel(0) symmetric",
    "int8 per-channel(1) symmetric",
    "int8 per-tensor symmetric",
    "uint8 per-tensor asymmetric",
    "int4 per-group(1, 5) symmetric",
    "uint4 per-group(1, 4) asymmetric",
    "int2 per-channel(0) symmetric",
]

each_rounder = pytest.mark.parametrize("name", list(ROUNDERS))
each_scheme = pytest.mark.parametrize("scheme", [parse_scheme(s) for s in SCHEMES], ids=SCHEMES)


def weight() -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((6, 13)).astype(np.float32)
    values[2] = 0
    values[3] *= np.float32(1e-12)
    values[4, 4] = 50
    return values


def params(scheme: Scheme, values: np.ndarray) -> QParams:
    groups = scheme.granularity.to_groups(values)
    shape = scheme.granularity.scale_shape(values.shape)
    if scheme.symmetric:
        scale = choose_scale(np.abs(groups).max(axis=1), scheme.format)
        zero = np.zeros_like(scale)
    else:
        scale, zero = choose_affine(groups.min(axis=1), groups.max(axis=1), scheme.format)
    return QParams(scheme=scheme, scale=scale.reshape(shape), zero_point=zero.reshape(shape))


@each_rounder
@each_scheme
def test_codes_have_the_schemes_type_the_tensors_shape_and_stay_inside_the_format(name, scheme):
    values = weight()
    p = params(scheme, values)
    tensor = ROUNDERS[name].choose(values, p)
    assert isinstance(tensor, QTensor)
    assert tensor.codes.dtype == np.dtype(scheme.format.code_dtype)
    assert tensor.shape == values.shape
    assert tensor.codes.min() >= scheme.format.min_code
    assert tensor.codes.max() <= scheme.format.max_code
    assert tensor.params.same(p), "a rounder chooses codes, not scales"


@each_rounder
@each_scheme
def test_a_weight_that_lies_on_the_grid_keeps_its_codes(name, scheme):
    values = weight()
    p = params(scheme, values)
    rng = np.random.default_rng(1)
    codes = rng.integers(scheme.format.min_code, scheme.format.max_code + 1, values.shape)
    grid = QTensor(codes=codes.astype(scheme.format.code_dtype), params=p)
    assert ROUNDERS[name].choose(grid.dequantize(), p).same(grid)


@each_rounder
@each_scheme
def test_zero_stays_exactly_zero(name, scheme):
    values = weight()
    back = ROUNDERS[name].choose(values, params(scheme, values)).dequantize()
    assert np.all(back[2] == 0)


@each_rounder
@each_scheme
def test_no_code_is_further_than_one_step_from_its_value(name, scheme):
    # Nearest stays within half a step; learned rounding goes up or down, a whole one. Plus float32's roundings.
    values = weight()
    p = params(scheme, values)
    tensor = ROUNDERS[name].choose(values, p)
    step = scheme.granularity.expand(p.scale, values.shape)
    assert np.all(np.abs(tensor.dequantize() - values) <= step * (1 + 2.0 ** (scheme.format.stored_bits - 22)))


@each_rounder
def test_the_same_input_gives_the_same_codes_and_is_left_alone(name):
    values, p = weight(), params(parse_scheme(SCHEMES[0]), weight())
    one, other = (ROUNDERS[name].choose(values, p) for _ in range(2))
    assert one.same(other)
    assert np.array_equal(values, weight())


@each_rounder
@each_scheme
def test_codes_are_the_same_on_array_api_strict(name, scheme):
    import array_api_strict as strict

    values = weight()
    p = params(scheme, values)
    lifted = QParams(scheme=scheme, scale=strict.asarray(p.scale), zero_point=strict.asarray(p.zero_point))
    ours, theirs = ROUNDERS[name].choose(values, p), ROUNDERS[name].choose(strict.asarray(values), lifted)
    assert same_array(ours.codes, theirs.codes)


@each_rounder
def test_nan_is_refused(name):
    values = weight()
    p = params(parse_scheme(SCHEMES[0]), values)
    values[0, 0] = np.nan
    with pytest.raises(NumericsError) as caught:
        ROUNDERS[name].choose(values, p)
    assert caught.value.slug == "nonfinite-values"


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(0, 1)], ids=lambda g: g.name)
@each_rounder
def test_a_vector_is_a_tensor_too(name, granularity):
    scheme = Scheme(format=parse_scheme(SCHEMES[0]).format, granularity=granularity, symmetric=True)
    values = np.array([1.0, -2.0, 0.0], dtype=np.float32)
    assert ROUNDERS[name].choose(values, params(scheme, values)).shape == (3,)
