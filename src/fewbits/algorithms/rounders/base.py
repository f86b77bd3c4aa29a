"""The protocol of rounders."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fewbits._base.arrays import Array
from fewbits.numerics.qtensor import QParams, QTensor


class Rounder(ABC):
    """Chooses the codes of a weight under given scales."""

    @abstractmethod
    def choose(self, values: Array, params: QParams) -> QTensor:
        """Returns the quantized weight; values is float32 in the tensor's shape."""
