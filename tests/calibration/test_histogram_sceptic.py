"""The middle of a bin is between its ends."""

from __future__ import annotations

import numpy as np

from fewbits.calibration.histogram import HALF_BINS, histogram_of


def test_centers_are_the_middles_of_the_documented_bins() -> None:
    found = histogram_of(np.array([0.75, -0.3], np.float32))
    low = (np.arange(2 * HALF_BINS) - HALF_BINS) * found.width
    assert np.array_equal(found.centers(), low + found.width / 2)  # powers of two: exact
    used = np.flatnonzero(found.counts)
    assert np.abs(found.centers()[used] - [-0.3, 0.75]).max() <= found.width / 2
