"""The entropy rule against its definition, written out bin by bin."""

import numpy as np
import pytest

from fewbits.algorithms.ranges import RANGE_RULES
from fewbits.calibration.histogram import histogram_of
from fewbits.numerics.format import Int

RULE = RANGE_RULES["entropy"]
U8 = Int(bits=8, signed=False)


def naive(histogram, low, high, steps):
    """KL(P || Q) in nats: P with all beyond the ends counted at the ends, Q with each code's count spread evenly."""
    bins = [(c, n) for c, n in zip(histogram.centers().tolist(), histogram.counts.tolist(), strict=True) if n]
    inside = [(c, n) for c, n in bins if low <= c <= high]
    p = [float(n) for _, n in inside]
    p[0] += sum(n for c, n in bins if c < low)
    p[-1] += sum(n for c, n in bins if c > high)
    by_code: dict[int, list[int]] = {}
    for place, (c, _) in enumerate(inside):
        by_code.setdefault(round((c - low) / ((high - low) / steps)), []).append(place)
    q = [0.0] * len(inside)
    for places in by_code.values():
        for place in places:
            q[place] = sum(inside[i][1] for i in places) / len(places)
    p, q = np.array(p) / sum(p), np.array(q) / sum(q)
    return float((p * np.log(p / q)).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_range_has_the_least_divergence_of_those_tried(symmetric, bits):
    values = np.random.default_rng(0).standard_t(3, 3000).astype(np.float32)
    histogram, fmt = histogram_of(values), Int(bits=bits, signed=False)
    ends = RULE.from_histogram(histogram, fmt, symmetric=symmetric, parameter=None)
    low, high = (-histogram.amax, histogram.amax) if symmetric else (histogram.low, histogram.high)
    tried = {f: naive(histogram, f * low, f * high, fmt.max_code) for f in np.arange(64, 12, -1) / 64.0}
    assert ends == (min(tried, key=tried.get) * low, min(tried, key=tried.get) * high)


def test_heavy_tails_are_cut_and_even_values_are_not():
    rng = np.random.default_rng(1)
    tails = histogram_of(rng.standard_t(2, 50_000).astype(np.float32))
    even = histogram_of(rng.uniform(-1, 1, 50_000).astype(np.float32))
    assert RULE.from_histogram(tails, U8, symmetric=True, parameter=None)[1] < tails.amax / 2
    assert RULE.from_histogram(even, U8, symmetric=True, parameter=None)[1] > 0.9 * even.amax
