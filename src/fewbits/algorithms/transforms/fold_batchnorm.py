"""Batch normalization folded into the weight and bias of the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits._base.errors import NumericsError
from fewbits.algorithms.transforms.base import Transform


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchNorm(Transform):
    """The frozen statistics of a batch normalization, all [channels].

    Args:
      gamma: Learned factor.
      beta: Learned offset.
      mean: Running mean.
      variance: Running variance; variance + epsilon > 0.
      epsilon: Added to the variance.
    """

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float

    def fold(self, weight: Array, bias: Array | None, *, axis: int) -> tuple[Array, Array]:
        """Returns weight and bias of the layer that computes norm(layer(x)).

        f = gamma / sqrt(variance + epsilon),  weight' = weight * f along the axis,  bias' = (bias - mean) * f + beta.
        Computed in float64, so that the only rounding is the final one to float32.

        Raises: NumericsError(slug="batchnorm-variance") where variance + epsilon is not positive.
        Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.2, equation 14.
        """
        xp = namespace(weight)
        wide = xp.float64
        spread = xp.astype(self.variance, wide) + self.epsilon
        if not bool(xp.all(spread > 0)):
            raise NumericsError(
                "a batch normalization has a variance that is not positive; export the trained model again",
                slug="batchnorm-variance",
            )
        factor = xp.astype(self.gamma, wide) / xp.sqrt(spread)
        shape = tuple(-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim))
        folded = xp.astype(weight, wide) * xp.reshape(factor, shape)
        mean = xp.astype(self.mean, wide)
        start = -mean if bias is None else xp.astype(bias, wide) - mean
        offset = start * factor + xp.astype(self.beta, wide)
        return xp.astype(folded, xp.float32), xp.astype(offset, xp.float32)


ALGORITHM: type[Transform] = BatchNorm
