"""The protocol of rounders."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fewbits._base.arrays import Array
from fewbits.numerics.qtensor import QParams, QTensor


class Rounder(ABC):
    """Chooses the codes of a weight under given scales.

    ``in_blocks`` is False for those that need a layer which runs in integers: weights in blocks have none.
    """

    in_blocks = True

    @abstractmethod
    def choose(self, values: Array, params: QParams, second_moment: Array | None = None) -> QTensor:
        """Returns the quantized weight.

        Args:
          values: float32 in the tensor's shape; with a second moment [rows, K], inputs multiplied along K.
          params: Scales, which stay.
          second_moment: X^T X [K, K] of the layer's inputs X, where known; a rounder may leave it unused.
        """
