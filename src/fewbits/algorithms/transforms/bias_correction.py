"""Bias correction: a layer's mean output is brought back to that of the float model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fewbits._base.arrays import Array, namespace
from fewbits.algorithms.transforms.base import Transform


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BiasCorrection(Transform):
    """bias - (mean output of the quantized layer - mean output of the float layer), per channel.

    Rounding errors of weights and of the layer's inputs do not cancel over examples: their mean is an error of the
    bias. Where the quantized layer is fed by the quantized layers before it, corrected themselves, nothing is left of
    the mean error of the whole prefix.

    Args:
      excess: Mean output of the quantized layer minus that of the float one, [channels].
    Source: Nagel et al. 2019 (arXiv 1906.04721), section 4.2; Finkelstein et al. 2019 (arXiv 1906.03193).
    """

    excess: Array

    def fold(self, weight: Array, bias: Array | None, *, axis: int) -> tuple[Array, Array]:
        xp = namespace(weight, self.excess)
        corrected = -self.excess if bias is None else xp.astype(bias, xp.float64) - self.excess
        return weight, xp.astype(corrected, xp.float32)


ALGORITHM = BiasCorrection
