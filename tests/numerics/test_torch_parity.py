"""The numerics run on torch tensors from the same source and give the same bits as on NumPy."""

from __future__ import annotations

import numpy as np
import pytest

import fewbits
from fewbits.algorithms.ranges import RANGE_RULES
from fewbits.algorithms.transforms.fold_batchnorm import BatchNorm
from fewbits.numerics.format import Int
from fewbits.numerics.formats import FORMATS
from fewbits.numerics.scaling import choose_affine, choose_scale

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
