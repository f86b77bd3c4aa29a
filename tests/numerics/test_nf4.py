"""The sixteen values of NF4 are those of its definition: quantiles of a normal distribution, computed again here."""

from statistics import NormalDist

import numpy as np

import fewbits


def normal_float(bits: int) -> np.ndarray:
    """QLoRA, section 3 and appendix E: one value more above zero than below, normalized by the largest."""
    half = 1 << (bits - 1)
    top = 1 - (1 / (2 * (2 * half - 1)) + 1 / (4 * half)) / 2
    up = [NormalDist().inv_cdf(p) for p in np.linspace(top, 0.5, half + 1)[:-1]]
    down = [-NormalDist().inv_cdf(p) for p in np.linspace(top, 0.5, half)[:-1]]
    return np.array([*down, 0.0, *up[::-1]]) / up[0]


def test_the_table_of_nf4_is_the_quantiles_to_float32():
    # The published table was computed in float32: one step of it at 1.0 is 6e-8.
    assert np.abs(normal_float(4) - np.array(fewbits.formats["nf4"].values)).max() < 1e-6


def test_each_code_of_nf4_is_used_about_equally_often_by_normal_values_in_blocks():
    codes = np.asarray(fewbits.quantize_array(np.random.default_rng(0).standard_normal((4096, 64)), "nf4").codes)
    share = np.bincount(codes.reshape(-1), minlength=16) / codes.size
    uniform = np.bincount(
        np.asarray(fewbits.quantize_array(np.random.default_rng(0).standard_normal((4096, 64)), "int4-f64").codes + 8)
        .reshape(-1),
        minlength=16,
    ) / codes.size  # fmt: skip

    def entropy(p):
        return float(-(p[p > 0] * np.log2(p[p > 0])).sum())

    assert entropy(share) > entropy(uniform)
    assert entropy(share) > 3.8
