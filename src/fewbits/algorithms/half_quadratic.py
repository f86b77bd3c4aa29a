"""Half-quadratic quantization: scales and zero points under which most weights err little, outliers as they may.

The error of a block is sum |w - v|^p with p < 1, v = (q - z) d, which large errors of a few weights hardly move. With
an auxiliary error e it is split into two steps that have closed forms, and beta grows by a factor each round:

    e <- shrink(w - v)   = sign(w - v) max(0, |w - v| - |w - v|^(p - 1) / beta)
    z <- mean(q - (w - e) / d)    or    d <- sum (q - z) (w - e) / sum (q - z)^2,    then q <- nearest.

Errors are taken in steps of the first scale, so that a factor of the weight changes no code; the authors' code takes
them in units of the weight, where at the usual sizes of weights (|w| of some hundredths) the shrinking leaves no e at
all and z becomes a plain mean. They fit z alone, a real number; files with integer zero points have z rounded, and then
d is fitted in the same way, as where there is no zero point. No data are needed, and no product of matrices.

Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models (2023), sections 2 and 3; their
p = 0.7, and beta from 10 by a factor of 1.01 in 20 rounds (their package, hqq 0.2.8, leaves beta at 10).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fewbits.numerics.format import Int
from fewbits.numerics.scaling import MIN_SCALE

POWER = 0.7
BETA = 10.0
GROWTH = 1.01
ROUNDS = 20


def half_quadratic(
    groups: np.ndarray, scale: np.ndarray, zero: np.ndarray, fmt: Int, *, fit: Literal["scale", "zero"]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and zero point of each block; of all rounds those with the least sum |w - v|^p, the start included.

    Args:
      groups: w [..., size], finite float32.
      scale: d where it starts, [...] float32 > 0.
      zero: z where it starts, [...]; stays, where the scale is fitted.
      fmt: Of the codes.
      fit: Which of the two is.
    """
    unit = scale[..., None]
    places = (groups / unit).astype(np.float32)  # in steps of the first scale: a weight of any size is seen alike
    step, zero = np.ones_like(scale, dtype=np.float32), zero.astype(np.float32)
    best, beta = (step, zero), BETA
    codes = _codes(places, step, zero, fmt)
    error = _error(places, codes, step, zero)
    least = error
    for _ in range(ROUNDS):
        moved, shift = codes - zero[..., None], step[..., None]
        wanted = places - _shrunk(places - moved * shift, beta)
        if fit == "zero":
            zero = (codes - wanted / shift).mean(axis=-1, dtype=np.float32)
        else:
            below = (moved * moved).sum(axis=-1)
            above = (moved * wanted).sum(axis=-1)
            fits = (below > 0) & (above > 0)
            step = np.where(fits, above / np.where(fits, below, 1), step).astype(np.float32)
        codes = _codes(places, step, zero, fmt)
        error = _error(places, codes, step, zero)
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, step, best[0]), np.where(better, zero, best[1])
        beta *= GROWTH
    return np.maximum(scale * best[0], MIN_SCALE).astype(np.float32), best[1]


def _codes(places: np.ndarray, step: np.ndarray, zero: np.ndarray, fmt: Int) -> np.ndarray:
    moved = places / step[..., None]
    moved += zero[..., None]
    np.rint(moved, out=moved)
    return np.asarray(np.clip(moved, fmt.min_value, fmt.max_value, out=moved))


def _error(places: np.ndarray, codes: np.ndarray, step: np.ndarray, zero: np.ndarray) -> np.ndarray:
    off = np.abs(places - (codes - zero[..., None]) * step[..., None])
    return np.asarray((off ** np.float32(POWER)).sum(axis=-1))


def _shrunk(off: np.ndarray, beta: float) -> np.ndarray:
    """Returns the proximal step of |e|^p, as its authors approximate it; 0 for errors up to some part of a step."""
    size = np.abs(off)
    safe = np.maximum(size, np.float32(1e-8))
    return np.asarray(np.copysign(np.maximum(size - safe ** np.float32(POWER - 1) / np.float32(beta), 0), off))
