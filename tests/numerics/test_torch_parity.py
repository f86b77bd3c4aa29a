"""The numerics run on torch tensors from the same source and give the same bits as on NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fewbits
from fewbits._base.arrays import same_array
from fewbits.algorithms.ranges import RANGE_RULES
from fewbits.algorithms.transforms.fold_batchnorm import BatchNorm
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.scaling import choose_affine, choose_scale
from fewbits.numerics.schemes import SCHEMES as CATALOG

torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
pytestmark = pytest.mark.torch

SCHEMES = ("int8", "uint8", "int4", "int3", "int16", "int8-channel", "int4-g32", "int4-g50")


def values(shape: tuple[int, ...] = (96, 128)) -> np.ndarray:
    """Values over many magnitudes, with exact ties, zeros and denormals among them."""
    rng = np.random.default_rng(7)
    drawn = rng.standard_normal(shape) * np.exp2(rng.integers(-20, 8, shape))
    drawn[0] = np.arange(shape[1]) / 2 - 16
    drawn[1] = 0
    drawn[2] = 1e-44
    return drawn.astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("axis", [-1, 0])
def test_quantize_array_gives_the_same_codes_and_scales_as_numpy(scheme: str, axis: int) -> None:
    array = values()
    ours = fewbits.quantize_array(array, scheme, axis=axis)
    theirs = fewbits.quantize_array(torch.from_numpy(array), scheme, axis=axis)
    assert isinstance(theirs.codes, torch.Tensor)
    assert np.array_equal(ours.codes, theirs.codes.numpy())
    assert np.asarray(ours.scale).tobytes() == theirs.scale.numpy().tobytes()
    assert np.asarray(ours.dequantize()).tobytes() == theirs.dequantize().numpy().tobytes()


def test_scales_are_the_same_bits() -> None:
    low, high = -np.abs(values((64, 1))), np.abs(values((64, 1))) * 3
    for fmt in FORMATS.values():
        if not isinstance(fmt, Int) or fmt.bits > 16:
            continue
        ours, theirs = choose_affine(low, high, fmt), choose_affine(torch.from_numpy(low), torch.from_numpy(high), fmt)
        for mine, other in zip(ours, theirs, strict=True):
            assert np.asarray(mine).tobytes() == other.numpy().tobytes(), fmt.name
        assert choose_scale(high, fmt).tobytes() == choose_scale(torch.from_numpy(high), fmt).numpy().tobytes()


@pytest.mark.parametrize("name", ["minmax", "percentile"])
def test_range_rules_of_weights_are_the_same_bits(name: str) -> None:
    rule, groups = RANGE_RULES[name], values()
    ours = rule.from_groups(groups, FORMATS["int8"], parameter=rule.default)
    theirs = rule.from_groups(torch.from_numpy(groups), FORMATS["int8"], parameter=rule.default)
    assert np.asarray(ours).tobytes() == theirs.numpy().tobytes()


def test_mse_ranges_of_weights_differ_by_at_most_one_step_of_their_grid() -> None:
    # The rule sums squares, and the order of a sum is the library's: near a tie the neighbouring fraction may win.
    rule, groups = RANGE_RULES["mse"], values()
    ours = np.asarray(rule.from_groups(groups, FORMATS["int4"], parameter=None))
    theirs = rule.from_groups(torch.from_numpy(groups), FORMATS["int4"], parameter=None).numpy()
    amax = np.abs(groups).max(axis=1)
    assert np.all(np.abs(ours - theirs) <= amax / 40 * (1 + 1e-6))


def test_fold_batchnorm_is_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((8, 4, 3, 3)).astype(np.float32)
    per_channel = [rng.random(8).astype(np.float32) + 0.1 for _ in range(5)]

    def fold(convert):  # type: ignore[no-untyped-def]
        gamma, beta, mean, variance, bias = (convert(a) for a in per_channel)
        norm = BatchNorm(gamma=gamma, beta=beta, mean=mean, variance=variance, epsilon=1e-5)
        return norm.fold(convert(weight), bias, axis=0)

    for ours, theirs in zip(fold(lambda a: a), fold(torch.from_numpy), strict=True):
        assert np.asarray(ours).tobytes() == theirs.numpy().tobytes()


# --- every format and scheme --------------------------------------------------------------------------------------

SHORTHANDS = (
    "int8", "uint8-asym", "uint16-asym", "int5-channel", "uint3-token-asym", "int4-g7", "uint2-g16-asym", "int4-f50",
    "uint4-b3x5-asym", "int4-g32-scale-fp16", "int4-g16-scale-ue4m3", "fp8_e5m2-channel", "fp6_e3m2-g32",
    "fp4_e2m1-f24", "nf4-f64-scale-bf16", "binary", "ternary-g10", "fp16-channel",
)  # fmt: skip
OTHER_WIDTHS = ("float16", "bfloat16", "float64")


def in_both(array: np.ndarray, dtype: str) -> tuple[np.ndarray, torch.Tensor]:
    """Returns float32 values in another width, in NumPy (bfloat16 as ml_dtypes' type) and in torch."""
    theirs = torch.from_numpy(array).to(getattr(torch, dtype))
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return theirs.to(torch.float32).numpy().astype(kind), theirs


def same_on_torch(array: np.ndarray, scheme: str, *, dtype: str, axis: int = -1, seed: int | None = None) -> None:
    mine, other = in_both(array, dtype)
    ours = fewbits.quantize_array(mine, scheme, axis=axis, seed=seed)
    theirs = fewbits.quantize_array(other, scheme, axis=axis, seed=seed)
    assert isinstance(theirs.codes, torch.Tensor)
    assert ours.same(theirs)
    assert same_array(ours.dequantize(), theirs.dequantize())


def rows_for(scheme: str, count: int) -> np.ndarray:
    divides = CATALOG.of_array(scheme).divides
    return values((count, 70 if divides == 1 else -(-70 // divides) * divides))


@pytest.mark.parametrize("scheme", [*CATALOG, *SHORTHANDS])
def test_every_scheme_gives_the_same_codes_scales_and_values(scheme: str) -> None:
    rows = rows_for(scheme, 7)
    same_on_torch(rows, scheme, dtype="float32")
    same_on_torch(np.ascontiguousarray(rows.T), scheme, dtype="float32", axis=0)


@pytest.mark.parametrize("dtype", OTHER_WIDTHS)
@pytest.mark.parametrize("scheme", [*CATALOG, *SHORTHANDS])
def test_every_scheme_gives_the_same_on_other_widths(scheme: str, dtype: str) -> None:
    same_on_torch(rows_for(scheme, 5), scheme, dtype=dtype)


@pytest.mark.parametrize("scheme", ["int4-g32", "uint8-asym", "nvfp4", "nf4-dq", "mxfp8", "ternary"])
def test_random_rounding_gives_the_same_codes(scheme: str) -> None:
    same_on_torch(values((11, 70)), scheme, dtype="float32", seed=11)


def test_a_view_of_a_tensor_and_one_with_a_gradient_are_quantized_as_their_values() -> None:
    array = values((64, 96))
    for scheme in ("int4-g32", "nvfp4", "fp8-block", "q4_0"):
        expected = fewbits.quantize_array(np.ascontiguousarray(array.T), scheme)
        across = torch.from_numpy(array).T.requires_grad_()
        assert fewbits.quantize_array(across, scheme).same(expected)


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_gives_the_same_codes_and_values(name: str) -> None:
    fmt = FORMATS[name]
    patterns = np.random.default_rng(1).integers(0, 1 << 32, 4000, dtype=np.uint32).view(np.float32)
    known = patterns if fmt.nan_code is not None else patterns[~np.isnan(patterns)]
    grid = fmt.grid[:: max(1, len(fmt.grid) // 500)] if fmt.stored_bits <= 16 else np.arange(9, dtype=np.float32)
    ends = np.array([np.inf, -np.inf, 0.0, -0.0, 1e-45], np.float32)
    inputs = np.concatenate([known, grid, grid[:-1] / 2 + grid[1:] / 2, ends])
    codes = np.asarray(fmt.encode(inputs))
    assert same_array(codes, fmt.encode(torch.from_numpy(inputs)))
    assert same_array(fmt.decode(codes), fmt.decode(torch.from_numpy(codes)))
    if fmt.stored_bits <= 16:
        assert same_array(fmt.encode(inputs, seed=3), fmt.encode(torch.from_numpy(inputs), seed=3))
        every = np.array(fmt.codes())
        assert same_array(fmt.decode(every), fmt.decode(torch.from_numpy(every)))
