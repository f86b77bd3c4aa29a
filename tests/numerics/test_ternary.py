"""Ternary values are those of BitNet b1.58: round(w / mean|w|), half to even integers, clipped to [-1, 1]."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbits
from fewbits.numerics import oracle
from fewbits.numerics.qtensor import QTensor

TERNARY = fewbits.formats["ternary"]
HALF = np.float32(0.5)
# Each row's mean magnitude is a power of two, and half of it is among its values.
ROWS = np.array(
    [[0.5, -0.5, 1.5, -1.5], [1.0, -1.0, 0.5, 1.5], [-0.5, 0.5, -2.5, 0.5], [0.0, -0.0, 2.0, -2.0]], np.float32
) * np.exp2([[0], [-20], [30], [-100]]).astype(np.float32)
DRAWN = given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 40), st.integers(-60, 60))


def normal(seed: int, rows: int, columns: int, exponent: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, columns)) * 2.0**exponent).astype(np.float32)


def tied(seed: int, rows: int, columns: int, exponent: int) -> np.ndarray:
    """Returns pairs 4 - k and 4 + k, k up to 4, with signs: whatever pairs share a scale, it is 4, and 2 is half of it.

    Sums are integers times a power of two, exact in float32 in any order.
    """
    rng = np.random.default_rng(seed)
    k = rng.integers(0, 5, (rows, columns, 1))
    pairs = (4 + k * [-1, 1]) * rng.choice([-1, 1], (rows, columns, 2))
    return (pairs * 2.0**exponent).astype(np.float32).reshape(rows, 2 * columns)


def values_and_scale(tensor: QTensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ternary values and the scales, both in the tensor's shape."""
    scale = tensor.scheme.granularity.expand(np.asarray(tensor.scale), tensor.shape)
    return np.asarray(TERNARY.decode(tensor.codes)), np.broadcast_to(scale, tensor.shape)


def codes_by_oracle(values: np.ndarray, scale: np.ndarray) -> list[int]:
    pairs = zip(values.ravel().tolist(), scale.ravel().tolist(), strict=True)
    return [oracle.quantize(value, Fraction(size), TERNARY) for value, size in pairs]


def test_half_a_ternary_step_is_zero():
    assert TERNARY.ties == "zero"
    beyond = np.nextafter(HALF, np.float32(1))
    values = np.array([HALF, -HALF, beyond, -beyond, np.nextafter(HALF, np.float32(0))], np.float32)
    codes = np.asarray(TERNARY.encode(values))
    assert np.asarray(TERNARY.decode(codes)).tolist() == [0, 0, 1, -1, 0]
    assert codes.tolist() == [oracle.encode(value, TERNARY) for value in values.tolist()]


def test_half_a_mean_is_zero_under_it():
    tensor = fewbits.quantize_array(ROWS, "ternary-channel")
    assert np.asarray(tensor.scale).ravel().tolist() == [1.0, 2.0**-20, 2.0**30, 2.0**-100]
    values, scale = values_and_scale(tensor)
    assert np.any(np.abs(ROWS) == scale / 2)
    assert values.tolist() == [[0, 0, 1, -1], [1, -1, 0, 1], [0, 0, -1, 0], [0, 0, 1, -1]]
    assert np.asarray(tensor.codes).ravel().tolist() == codes_by_oracle(ROWS, scale)


@pytest.mark.parametrize("draw", [normal, tied], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("scheme", ["ternary", "ternary-channel", "ternary-g10"])
@settings(deadline=None, max_examples=40)
@DRAWN
def test_codes_are_the_rounded_quotients_by_the_mean_and_those_of_the_oracle(
    scheme, draw, seed, rows, columns, exponent
):
    array = draw(seed, rows, columns, exponent)
    tensor = fewbits.quantize_array(array, scheme)
    values, scale = values_and_scale(tensor)
    assert np.array_equal(values, np.clip(np.rint(array / scale), -1, 1))
    assert np.asarray(tensor.codes).ravel().tolist() == codes_by_oracle(array, scale)


@pytest.mark.torch
@settings(deadline=None, max_examples=40)
@DRAWN
def test_codes_and_scales_are_those_of_bitnet_in_torch(seed, rows, columns, exponent):
    # arXiv 2402.17764, equations 1 to 3, without the epsilon that keeps the mean of zeros from being 0.
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    weight = torch.from_numpy(tied(seed, rows, columns, exponent))
    tensor = fewbits.quantize_array(weight, "ternary")
    mean = weight.abs().mean()
    assert tensor.scale.flatten().tolist() == [mean.item()]
    assert torch.equal(TERNARY.decode(tensor.codes), torch.round(weight / mean).clamp(-1, 1))


@pytest.mark.torch
@settings(deadline=None, max_examples=40)
@DRAWN
def test_the_scale_is_the_mean_of_torch_but_for_its_roundings(seed, rows, columns, exponent):
    # Torch sums in float32, in an order of its own: n - 1 additions, the division, and the rounding of our exact mean.
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    weight = torch.from_numpy(normal(seed, rows, columns, exponent))
    tensor, mean = fewbits.quantize_array(weight, "ternary"), float(weight.abs().mean())
    assert abs(float(tensor.scale) - mean) <= (weight.numel() + 1) * 2.0**-24 * mean
    assert torch.equal(TERNARY.decode(tensor.codes), torch.round(weight / tensor.scale).clamp(-1, 1))
