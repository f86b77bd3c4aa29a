"""The accumulator's limit where every code is rounded up, and biases behind one scale for all channels."""

from __future__ import annotations

import numpy as np
import pytest

from fewbits.algorithms.kernel_limits import accumulator_scale, scale_for_bias
from fewbits.numerics.format import Int

# What a 32-bit accumulator holds beside the largest bias code that scale_for_bias allows.
ROOM = 2**31 - 1 - 2**30


@pytest.mark.parametrize("mean_code", [1.51, 2.51, 4.51, 10.51, 63.51])
def test_products_fit_although_every_code_is_rounded_up(mean_code: float) -> None:
    elements = int(ROOM / 255 / mean_code)
    groups = np.ones((1, elements), np.float32)
    scale = accumulator_scale(groups, Int(bits=8, signed=False))
    codes = np.round(groups.astype(np.float64) / scale[:, None])
    assert codes.max() >= 1
    assert int(codes.sum()) * 255 <= ROOM


@pytest.mark.parametrize("place", [0, 2])
def test_one_scale_for_all_channels_is_large_enough_for_the_largest_bias(place: int) -> None:
    bias = np.array([0.1, -0.2, 0.3], np.float32)
    bias[place] = -5e4
    scale = scale_for_bias(np.array([1e-9]), np.array([1e-7]), bias, 1e-3)
    assert np.abs(bias / (scale * 1e-3)).max() <= 2**30
