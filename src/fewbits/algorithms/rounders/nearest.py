"""Every value goes to its nearest code."""

from __future__ import annotations

from typing import final

from fewbits._base.arrays import Array
from fewbits.algorithms.rounders.base import Rounder
from fewbits.numerics.qtensor import QParams, QTensor, quantize


@final
class Nearest(Rounder):
    """Round half to even, saturating."""

    def choose(self, values: Array, params: QParams, second_moment: Array | None = None) -> QTensor:
        return quantize(values, params)


ALGORITHM: Rounder = Nearest()
