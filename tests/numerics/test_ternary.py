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


def drawn(seed: int, rows: int, columns: int, exponent: int) -> np.ndarray:
    """Returns normal values, or small integers, whose halves of means are often among them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, columns)) if seed % 2 else rng.integers(-4, 5, (rows, columns))
    return (values * 2.0**exponent).astype(np.float32)


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


@pytest.mark.parametrize("scheme", ["ternary", "ternary-channel", "ternary-g10"])
@settings(deadline=None, max_examples=40)
@DRAWN
def test_codes_are_the_rounded_quotients_by_the_mean_and_those_of_the_oracle(scheme, seed, rows, columns, exponent):
    array = drawn(seed, rows, columns, exponent)
    tensor = fewbits.quantize_array(array, scheme)
    values, scale = values_and_scale(tensor)
    assert np.array_equal(values, np.clip(np.rint(array / scale), -1, 1))
    assert np.asarray(tensor.codes).ravel().tolist() == codes_by_oracle(array, scale)


@pytest.mark.torch
@settings(deadline=None, max_examples=40)
@DRAWN
def test_codes_are_those_of_bitnet_in_torch(seed, rows, columns, exponent):
    # arXiv 2402.17764, equations 1 to 3, without the epsilon that keeps the mean of zeros from being 0. Torch sums the
    # mean in float32 in an order of its own: n - 1 additions, its division and the rounding of ours, 2**-24 each.
    torch = pytest.importorskip("torch", reason="torch is an extra: make test TORCH=1")
    weight = torch.from_numpy(drawn(seed, rows, columns, exponent))
    tensor = fewbits.quantize_array(weight, "ternary")
    mean = weight.abs().mean()
    assert mean == 0 or abs(float(tensor.scale) - float(mean)) <= (weight.numel() + 1) * 2.0**-24 * float(mean)
    expected = torch.round(weight / tensor.scale).clamp(-1, 1)
    assert torch.equal(TERNARY.decode(tensor.codes), expected)
