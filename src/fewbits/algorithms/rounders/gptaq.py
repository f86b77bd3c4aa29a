"""GPTAQ: codes that aim at what the float layer gives, though the layer is fed by quantized ones.

For a layer with weight w [rows, K], inputs X_f in the float model and X in the quantized one,

    |X_f w - X v|^2 + r |v - w|^2,    r = ridge * mean(diag H),  H = X^T X,  C = X^T X_f

is least over real v at v = (H + r I)^-1 (C w + r w): what is left of the errors of all layers before is taken back as
far as it is linear in the inputs. GPTQ then chooses codes for v instead of w. Where X = X_f, v = w. The ridge keeps v
from fitting what some dozens of examples happen to show.

The scale of each row is the one of nine, from 0.75 to 1.2 times the range rule's, with which the codes err least: the
range rule minimizes the error of the weights themselves, and error feedback moves those.

Source: the objective without ridge, solved column by column, is that of Li et al. 2025 (arXiv 2504.02692).
"""

from __future__ import annotations

from typing import final

import numpy as np

from fewbits._base.arrays import Array, to_numpy
from fewbits._base.errors import NumericsError
from fewbits.algorithms.rounders.base import Rounder
from fewbits.algorithms.rounders.gptq import feedback, gptq_codes
from fewbits.numerics.granularity import PerTensor
from fewbits.numerics.qtensor import QParams, QTensor, as_array, quantize

# Parts of mean(diag H). Measured with 0.01, 0.1, 1 and 4 on MobileNet-V1 in w4a8 (KL on 300 pictures that calibrated
# nothing and are judged nowhere, millinats: 388, 301, 290, 314; GPTQ by itself 604), and alike on Tiny Darknet.
RIDGE = 0.5
# The same for the error by which scales are compared (MobileNet-V1, millinats: 498 with 0.01, 446 with 0.05).
_SCALE_RIDGE = 0.05
# What scales are multiplied by, the nearest to 1 first: a tie goes to the earlier one. With factors down to 0.5 layers
# err less still, and the model more (628).
FACTORS = (1.0, 0.95, 1.05, 0.9, 1.1, 0.85, 0.8, 1.2, 0.75)


def aimed(weight: np.ndarray, second_moment: np.ndarray, cross_moment: np.ndarray, *, ridge: float) -> np.ndarray:
    """Returns v above, float32 [rows, K].

    Args:
      weight: w [rows, K].
      second_moment: H [K, K].
      cross_moment: C [K, K]: rows go with the quantized model's inputs, columns with the float model's.
      ridge: More than 0.
    Raises: NumericsError(slug="second-moment") where shapes do not fit, or a moment is not finite.
    """
    size = weight.shape[1]
    if second_moment.shape != (size, size) or cross_moment.shape != (size, size):
        raise NumericsError(
            f"moments of shape {list(second_moment.shape)} and {list(cross_moment.shape)} do not fit a weight of shape "
            f"{list(weight.shape)}; its last axis is the one that inputs are multiplied along",
            slug="second-moment",
        )
    if not (np.isfinite(second_moment).all() and np.isfinite(cross_moment).all()):
        raise NumericsError("a moment of inputs is not finite; look for NaN in the examples", slug="second-moment")
    mean = float(np.diagonal(second_moment).mean())
    if mean == 0:
        return weight
    values = weight.astype(np.float64)
    damped = second_moment + ridge * mean * np.eye(size)
    return np.linalg.solve(damped, cross_moment @ values.T + ridge * mean * values.T).T.astype(np.float32)


def codes_and_scales(weight: np.ndarray, second_moment: np.ndarray, params: QParams) -> QTensor:
    """Returns GPTQ's codes under the best of some scales for each row.

    Args:
      weight: [rows, K], finite float32.
      second_moment: H [K, K].
      params: Scales per row to start from, symmetric. One scale for all rows stays as it is.
    """
    passed = feedback(second_moment)
    if isinstance(params.scheme.granularity, PerTensor):
        return QTensor(codes=gptq_codes(weight, passed, params), params=params)
    moment = np.asarray(second_moment, dtype=np.float64)
    ridge = _SCALE_RIDGE * float(np.diagonal(moment).mean())
    start = np.asarray(as_array(params.scale), dtype=np.float32)
    found: QTensor | None = None
    least = np.zeros(len(weight))
    for factor in FACTORS:
        scaled = (start * np.float32(factor)).astype(np.float32)
        tried = QParams(scheme=params.scheme, scale=scaled, zero_point=params.zero_point)
        codes = gptq_codes(weight, passed, tried)
        tensor = QTensor(codes=codes, params=tried)
        error = weight.astype(np.float64) - np.asarray(tensor.dequantize(), dtype=np.float64)
        total = np.einsum("nk,nk->n", error @ moment, error) + ridge * np.einsum("nk,nk->n", error, error)
        if found is None:
            found, least = tensor, total
            continue
        better = total < least
        rows = better[:, None]
        best = np.where(rows, scaled, np.asarray(found.scale)).astype(np.float32)
        found = QTensor(
            codes=np.where(rows, codes, np.asarray(found.codes)).astype(codes.dtype),
            params=QParams(scheme=params.scheme, scale=best, zero_point=params.zero_point),
        )
        least = np.where(better, total, least)
    assert found is not None
    return found


@final
class Gptaq(Rounder):
    """Error feedback towards the float layer's output; without inputs known, nearest codes.

    ``choose`` is given one second moment, which is that of both models then: it searches the scale of each row too.
    """

    in_blocks = False

    def choose(self, values: Array, params: QParams, second_moment: Array | None = None) -> QTensor:
        if second_moment is None:
            return quantize(values, params)
        return codes_and_scales(np.asarray(to_numpy(values)), np.asarray(to_numpy(second_moment)), params)


ALGORITHM: Rounder = Gptaq()
