"""Batch normalization folded into the weight and bias of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, namespace


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchNorm:
    """The frozen statistics of a batch normalization, all [channels].

    Args:
      gamma: Learned factor.
      beta: Learned offset.
      mean: Running mean.
      variance: Running variance, >= 0.
      epsilon: Added to the variance.
    """

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float


def fold_batchnorm(weight: Array, bias: Array | None, norm: BatchNorm, *, axis: int) -> tuple[Array, Array]:
    """Returns weight and bias of the layer that computes norm(layer(x)).

    f = gamma / sqrt(variance + epsilon),  weight' = weight * f along the axis,  bias' = (bias - mean) * f + beta.
    Computed in float64, so that the only rounding is the final one to float32.

    Args:
      weight: Any shape, channels along ``axis``.
      bias: [channels], or None for zeros.
      norm: The statistics.
      axis: Output channel axis of the weight.
    Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.2, equation 14.
    """
    xp = namespace(weight)
    wide = xp.float64
    factor = xp.astype(norm.gamma, wide) / xp.sqrt(xp.astype(norm.variance, wide) + norm.epsilon)
    shape = tuple(-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim))
    folded = xp.astype(weight, wide) * xp.reshape(factor, shape)
    start = -xp.astype(norm.mean, wide) if bias is None else xp.astype(bias, wide) - xp.astype(norm.mean, wide)
    offset = start * factor + xp.astype(norm.beta, wide)
    return xp.astype(folded, xp.float32), xp.astype(offset, xp.float32)


ALGORITHM = fold_batchnorm
