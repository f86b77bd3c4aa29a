"""The protocol of transforms: a value that a layer takes in, so that the model computes the same without it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fewbits._base.arrays import Array


class Transform(ABC):
    """A value that is folded into the weight and bias of one layer."""

    __slots__ = ()

    @abstractmethod
    def fold(self, weight: Array, bias: Array | None, *, axis: int) -> tuple[Array, Array]:
        """Returns weight and bias of the layer that has taken the transform in.

        Args:
          weight: float32, output channels along ``axis``.
          bias: [channels] float32, or None for zeros.
          axis: Output channel axis of the weight.
        """
