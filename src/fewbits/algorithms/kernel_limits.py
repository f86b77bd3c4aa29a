"""Scales that keep what a kernel adds up inside its registers: 16-bit pairs, 32-bit accumulators, int32 biases.

Each function returns the smallest weight scales that are safe; the flow takes the largest of them and of what the range
rule chose.
"""

from __future__ import annotations

import numpy as np

from fewbits.numerics.format import Int
from fewbits.numerics.scaling import MAX_SCALE, MIN_SCALE

# A bias code above this leaves less than half of the int32 accumulator to the products.
_MAX_BIAS_CODE = 2.0**30
# Bits with which a channel without weights still tells its bias.
_BARE_BIAS_CODE = 2.0**20
# What the products may take of the accumulator, so that the largest bias still fits beside them.
_MAX_PRODUCTS = 2.0**31 - 1 - _MAX_BIAS_CODE - 2.0**8


def accumulator_scale(groups: np.ndarray, activation: Int) -> np.ndarray:
    """Returns the smallest scales with which the products of a channel cannot overflow its int32 accumulator.

    sum_k |code_k| * reach <= products, where reach is the largest difference of two activation codes and
    |code_k| <= |w_k| / s + 1/2;  so  s >= sum |w| / (products / reach - K / 2).  It matters for K above some 33,000.

    Args:
      groups: [channels, K].
      activation: Format of the activations.
    Returns: [channels] float64.
    """
    room = _MAX_PRODUCTS / (activation.max_code - activation.min_code) - groups.shape[1] / 2
    return np.asarray(np.abs(groups).sum(axis=1, dtype=np.float64) / max(room, 1.0))


def pair_scale(groups: np.ndarray, limit: int) -> np.ndarray:
    """Returns the smallest scales with which no two codes of a channel exceed ``limit`` together.

    The two largest magnitudes a >= b of a channel become codes of at most a/s + 1/2 and b/s + 1/2; with
    s = (a + b) / (limit - 1) they stay within the limit, whichever two the kernel adds at 16 bits.

    Args:
      groups: [channels, elements].
      limit: Largest allowed |code_i| + |code_j|.
    Returns: [channels] float64.
    """
    magnitudes = np.abs(groups).astype(np.float64)
    if magnitudes.shape[1] == 1:
        return np.asarray(magnitudes[:, 0] / (limit - 1))
    largest = -np.partition(-magnitudes, 1, axis=1)[:, :2]
    return np.asarray(largest.sum(axis=1) / (limit - 1))


def scale_for_bias(scale: np.ndarray, amax: np.ndarray, bias: np.ndarray, activation_scale: float) -> np.ndarray:
    """Returns weight scales under which every bias fits its int32 code with the scale activation * weight.

    A channel with tiny weights and a large bias gets a larger scale (its weights then round to fewer codes, which is
    what they are worth beside the bias); a channel without weights gets a scale that tells its bias to 20 bits. The
    product with the activation's scale stays a normal float32.

    Args:
      scale: [channels] float64, or [1] for one scale for all.
      amax: [channels] or [1], largest weight magnitude.
      bias: [channels] or [1].
      activation_scale: Scale of the layer's input.
    Returns: of the scale's shape, float64.
    """
    magnitude = np.abs(bias.astype(np.float64))
    if scale.size == 1:
        magnitude = magnitude.max(keepdims=True)
    # Twice the least normal number: rounding scale and product to float32 cannot lead below it.
    least = 2 * MIN_SCALE / activation_scale
    needed = magnitude / (activation_scale * _MAX_BIAS_CODE)
    bare = magnitude / (activation_scale * _BARE_BIAS_CODE)
    fitted = np.where((amax == 0) & (magnitude > 0), bare, np.maximum(scale, needed))
    return np.asarray(np.clip(np.maximum(fitted, least), MIN_SCALE, MAX_SCALE))
