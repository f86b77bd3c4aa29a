"""The protocol of range rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fewbits._base.arrays import Array
from fewbits.calibration.histogram import Histogram
from fewbits.numerics.format import Int


class RangeRule(ABC):
    """Chooses the range [low, high] that codes shall cover; what lies outside saturates.

    ``default`` is the parameter where none is given; None for rules that take none.
    """

    default: ClassVar[float | None] = None

    def accepts(self, parameter: float) -> bool:
        """Returns whether the rule can work with this parameter."""
        return False

    @abstractmethod
    def from_histogram(
        self, histogram: Histogram, fmt: Int, *, symmetric: bool, parameter: float | None
    ) -> tuple[float, float]:
        """Returns (low <= 0, high >= 0) for an activation, in units of the tensor."""

    @abstractmethod
    def from_groups(self, groups: Array, fmt: Int, *, parameter: float | None) -> Array:
        """Returns amax [groups] float32 for the symmetric codes of a weight.

        Args:
          groups: [groups, elements] float32; one scale a row.
          fmt: Format of the codes.
          parameter: Of the rule.
        """
